"""Session-based recommendation with graph neural networks and LLM-read intents.

``import dmsrec_jax`` is light: it pulls in neither jax nor torch; `Recommender` loads them when first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmsrec_jax.recommend import Recommender

__all__ = ["Recommender"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Recommender":
        from dmsrec_jax.recommend import Recommender

        return Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
