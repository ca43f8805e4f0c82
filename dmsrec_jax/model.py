"""A session model: backbone and scorer, and its loss."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dmsrec_jax.backbones import BACKBONES
from dmsrec_jax.graphs import SessionBatch
from dmsrec_jax.item_graph import ItemGraph
from dmsrec_jax.layers import parameter, unit

COSINE_SCALE = 12.0
"""Factor on cosine scores, as in MSGIFSR (Guo et al., WSDM 2022)."""


@dataclass(frozen=True)
class ModelSettings:
    """What fixes a model's shapes and program."""

    backbone: str
    n_items: int
    d: int
    score: str
    n_positions: int
    """Clicks read of a session, its last ones; rows of the position table where there is one."""
    n_neighbors: int = 12
    """gcegnn: columns of the global graph."""


class Hyper(NamedTuple):
    """Traced settings: one program trains any values of them. None leaves a dropout out of the program."""

    lr: Any
    lr_decay: Any
    lr_decay_every: Any
    lr_first_decay: Any
    l2: Any
    dropout_global: Any = None
    dropout_local: Any = None


class SessionModel(nnx.Module):
    """Scores all items for the next click: eq. (8) and (13) of the LLM-DMsRec paper."""

    def __init__(self, settings: ModelSettings, item_graph: ItemGraph | None, *, rngs: nnx.Rngs) -> None:
        self.cosine = settings.score == "cosine"
        self.items = parameter(settings.d, settings.n_items + 1, settings.d, rngs=rngs)
        self.backbone = BACKBONES[settings.backbone].build(settings, item_graph, rngs)

    def __call__(
        self, batch: SessionBatch, hyper: Hyper | None = None, key: PRNGKeyArray | None = None
    ) -> Float[Array, "B items"]:
        """Logits, [B, n_items + 1]; column = item id, and the padding column is -inf. Dropout only with a key."""
        scores = self._scores(batch, hyper, key)
        return jnp.where(jnp.arange(scores.shape[1]) == 0, -jnp.inf, scores)

    def loss(
        self, batch: SessionBatch, hyper: Hyper | None = None, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Sum of the sessions' cross-entropies and their number; see `cross_entropy`."""
        return cross_entropy(self._scores(batch, hyper, key), batch)

    def _scores(self, batch: SessionBatch, hyper: Hyper | None, key: PRNGKeyArray | None) -> Float[Array, "B items"]:
        vectors = self.item_vectors()
        return self.score(self.represent(vectors, batch, hyper, key), vectors)

    def item_vectors(self) -> Float[Array, "items d"]:
        """What clicks are read from and scores are taken with."""
        return unit(self.items[...]) if self.cosine else self.items[...]

    def represent(
        self,
        vectors: Float[Array, "items d"],
        batch: SessionBatch,
        hyper: Hyper | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B d"]:
        """The session vectors z."""
        rates = {} if hyper is None else {"dropout_global": hyper.dropout_global, "dropout_local": hyper.dropout_local}
        return self.backbone(vectors, batch, key=key, **rates)

    def score(self, z: Float[Array, "B d"], vectors: Float[Array, "items d"]) -> Float[Array, "B items"]:
        """z · Eᵀ, or their cosines × 12, for all rows of the table, the padding row too."""
        z = unit(z) * COSINE_SCALE if self.cosine else z
        return z @ vectors.T


def cross_entropy(scores: Float[Array, "B items"], batch: SessionBatch) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of the sessions' cross-entropies (eq. 14) and their number; empty places count for nothing.

    Column 0 (padding) takes no part, whatever it holds.
    """
    real = batch.length > 0
    losses = _cross_entropies(scores, batch.target)
    return jnp.sum(jnp.where(real, losses, 0.0)), jnp.sum(real, dtype=jnp.float32)


@jax.custom_vjp
def _cross_entropies(scores: Float[Array, "B items"], target: Int[Array, "B"]) -> Float[Array, "B"]:
    """-log softmax(scores)[target] over columns 1 to n_items.

    Its own gradient, because autodiff writes the B x n_items matrix five times (mask, exponentials, one-hot, scaling)
    where once will do: a tenth of a step on Beauty.
    """
    return _cross_entropies_forward(scores, target)[0]


def _cross_entropies_forward(scores, target):
    columns = jnp.arange(scores.shape[1])
    peak = jnp.max(jnp.where(columns == 0, -jnp.inf, scores), axis=1, keepdims=True)
    total = jnp.sum(jnp.where(columns == 0, 0.0, jnp.exp(scores - peak)), axis=1, keepdims=True)
    log_total = peak + jnp.log(total)
    at_target = jnp.take_along_axis(scores, target[:, None], axis=1)
    return (log_total - at_target)[:, 0], (scores, target, log_total)


def _cross_entropies_backward(saved, gradient):
    scores, target, log_total = saved
    columns = jnp.arange(scores.shape[1])
    probability = jnp.where(columns == 0, 0.0, jnp.exp(scores - log_total))
    one_hot = columns == target[:, None]
    return gradient[:, None] * jnp.where(one_hot, probability - 1.0, probability), None


_cross_entropies.defvjp(_cross_entropies_forward, _cross_entropies_backward)
