"""DHCN: Self-Supervised Hypergraph Convolutional Networks for Session-based Recommendation (Xia et al., AAAI 2021).

Items are what three convolutions over the hypergraph of all training sessions make of them. In training sessions are
also compared with their neighbours in the batch, as released: only these comparisons depend on the batch, never a
score. Equations are numbered as in docs/backbones.md.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dmsrec_jax.graphs import SessionBatch, segment_sum
from dmsrec_jax.item_graph import Members, Rows, mean_convolution
from dmsrec_jax.layers import Constant, PositionAttention, Reading, Settings, session_mean

LAYERS = 3
DENSE = 16
"""Entries per click up to which one matrix takes the place of sums over the hypergraph: it is faster, and no larger."""
READS = Members
RATES = ("self_supervision",)
TORCH_KEYS = {
    "embedding.weight": "items[1:]",
    "pos_embedding.weight": "backbone.positions",
    "w_1.weight": "backbone.w_1.T",
    "w_1.bias": "backbone.b_1",
    "w_2": "backbone.w_2",
    "glu1.weight": "backbone.glu_1.kernel.T",
    "glu1.bias": "backbone.glu_1.bias",
    "glu2.weight": "backbone.glu_2.kernel.T",
}


class DHCN(PositionAttention):
    """Item vectors from the hypergraph, read out with reversed positions."""

    def __init__(self, d: int, n_positions: int, members: Members, *, rngs: nnx.Rngs) -> None:
        dense = len(members.per_item) ** 2 <= DENSE * members.of_sessions.members.size
        self.mean = Constant(jnp.asarray(mean_convolution(members, LAYERS))) if dense else None
        self.members: Any = None if dense else Constant(jax.tree.map(jnp.asarray, members))
        self._add_attention(d, n_positions, use_bias=True, rngs=rngs)

    def items(self, table: Float[Array, "items d"]) -> Float[Array, "items d"]:
        """Mean over 0 to 3 convolutions, eq. (D2); an item that the hypergraph does not know keeps its vector."""
        known = len(self.mean[...] if self.mean is not None else self.members.get_value().per_item)
        x = table[:known]
        mean = self.mean @ x if self.mean is not None else _mean(self.convolve, x)
        return jnp.concatenate([mean, table[known:]])

    def convolve(self, x: Float[Array, "items d"]) -> Float[Array, "items d"]:
        """From items to sessions and back, eq. (D1)."""
        members: Members = self.members.get_value()
        return members.per_item[:, None] * through_sessions(x, members)

    def __call__(self, item_vectors: Float[Array, "items d"], batch: SessionBatch, **_: object) -> Reading:
        """Session vectors, eq. (D3)."""
        z = self.read_out(item_vectors[batch.graph.nodes], batch)
        return Reading(z, (z,))

    def own_loss(
        self,
        table: Float[Array, "items d"],
        reading: Reading,
        batch: SessionBatch,
        whole_batch: Callable[[Array], Array],
        key: PRNGKeyArray,
        *,
        self_supervision: Float[Array, ""] | float | None = None,
        **_: object,
    ) -> Float[Array, ""]:
        """Tells a session's own neighbours in the batch from another's, eq. (D7), times ``self_supervision``."""
        if self_supervision is None:
            return jnp.zeros(())
        z, real = whole_batch(reading.z), whole_batch(batch.length) > 0
        near = whole_batch(session_mean(jax.lax.stop_gradient(table)[batch.graph.nodes], batch))
        near = neighbourhood(near, whole_batch(batch.seen(len(table)).astype(z.dtype)))
        row_key, column_key = jax.random.split(key)
        corrupted = jax.random.permutation(column_key, z[others(real, row_key)], axis=1)
        losses = jax.nn.softplus(-jnp.sum(z * near, axis=1)) + jax.nn.softplus(jnp.sum(corrupted * near, axis=1))
        return self_supervision * jnp.sum(jnp.where(real, losses, 0.0))


def others(real: Bool[Array, "B"], key: PRNGKeyArray) -> Int[Array, "B"]:
    """For each place that is real one of them, all in random order; for an empty place itself."""
    shuffled = jnp.argsort(jnp.where(real, jax.random.uniform(key, real.shape), 2.0))
    return jnp.where(real, shuffled[jnp.cumsum(real) - 1], jnp.arange(len(real)))


def neighbourhood(x: Float[Array, "B d"], seen: Float[Array, "B items"]) -> Float[Array, "B d"]:
    """Mean over 0 to 3 convolutions over the line graph, eq. (D5) and (D6): sessions by the items they share.

    Args:
      x: session vectors.
      seen: 1 where a session holds an item; all 0 in empty places.
    """
    shared, sizes = seen @ seen.T, seen.sum(1)
    weights = shared / jnp.maximum(sizes[:, None] + sizes - shared, 1.0)
    weights /= jnp.maximum(weights.sum(1, keepdims=True), 1.0)  # at least a session's own 1
    return _mean(lambda x: weights @ x, x)


@jax.custom_vjp
def through_sessions(x: Float[Array, "items d"], members: Members) -> Float[Array, "items d"]:
    """Sums, over an item's sessions, the means of their items: a symmetric map, so that it is its own gradient."""
    of_sessions = members.per_session[:, None] * _sum_rows(
        x.at[0].set(0.0), members.of_sessions, len(members.per_session)
    )
    return _sum_rows(of_sessions, members.of_items, len(x))


through_sessions.defvjp(
    lambda x, members: (through_sessions(x, members), members),
    lambda members, gradient: (through_sessions(gradient, members), None),
)


def _sum_rows(x: Float[Array, "members d"], rows: Rows, n_owners: int) -> Float[Array, "owners d"]:
    """Member by member: XLA then gathers and adds in one pass, several times as fast as summing an axis on a CPU."""
    of_rows = sum(x[rows.members[:, place]] for place in range(rows.members.shape[1]))
    return segment_sum(of_rows, rows.owners, n_owners, indices_are_sorted=True)


def _mean(convolve: Callable[[Array], Array], x: Array) -> Array:
    """Over 0 to 3 convolutions."""
    total = x
    for _ in range(LAYERS):
        x = convolve(x)
        total += x
    return total / (LAYERS + 1)


def build(settings: Settings, item_graph: Members, rngs: nnx.Rngs) -> DHCN:
    """The backbone for these model settings and the hypergraph of its training sessions."""
    return DHCN(settings.d, settings.n_positions, item_graph, rngs=rngs)
