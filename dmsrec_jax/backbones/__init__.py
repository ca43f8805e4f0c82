"""Graph backbones by name. One file each: its equations, and the names of its parameters in the released code."""

from types import ModuleType

from dmsrec_jax.backbones import attenmixer, dhcn, gcegnn, miasrec, msgifsr, share, srgnn, tagnn

BACKBONES: dict[str, ModuleType] = {
    "srgnn": srgnn,
    "gcegnn": gcegnn,
    "tagnn": tagnn,
    "share": share,
    "msgifsr": msgifsr,
    "attenmixer": attenmixer,
    "dhcn": dhcn,
    "miasrec": miasrec,
}
"""Each module has ``build(settings, item_graph, rngs) -> nnx.Module`` and ``TORCH_KEYS``.

The nnx module is a `layers.Backbone`. One that the released code fuses with intents also has ``RELEASED``
(`layers.ReleasedFusion`). One that reads all training sessions names in ``READS`` what ``build`` takes of them
(`item_graph.ItemGraph` or `item_graph.Members`). One with traced settings of its own (rates of dropout, weights of its
own loss) names them in ``RATES``. One with a ``SCALE`` makes vectors unit itself: its scores are cosines times this.
One whose released form depends on the width that sessions are padded to says so with ``PADDED``.
``TORCH_KEYS`` may name more parameters than a model of some settings has.
"""


def reads(backbone: str) -> type | None:
    """What it reads of all training sessions, if anything."""
    return getattr(BACKBONES[backbone], "READS", None)


def rates(backbone: str) -> tuple[str, ...]:
    """The traced settings it reads, by their names in `model.Hyper` and among the flags."""
    return getattr(BACKBONES[backbone], "RATES", ())


def own_score(backbone: str) -> str:
    """cosine where the backbone knows nothing else; dot, as published, for the others."""
    return "cosine" if hasattr(BACKBONES[backbone], "SCALE") else "dot"


def padded(backbone: str) -> bool:
    """Whether it can attend to padding, as released."""
    return getattr(BACKBONES[backbone], "PADDED", False)
