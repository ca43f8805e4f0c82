"""GCE-GNN: Global Context Enhanced Graph Neural Networks for SBR (Wang et al., SIGIR 2020).

As released: one hop of global neighbours with ReLU, raw co-occurrence counts as edge weights, sum of both levels.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dmsrec_jax.graphs import SessionBatch, segment_softmax, segment_sum
from dmsrec_jax.item_graph import ItemGraph
from dmsrec_jax.layers import (
    Constant,
    PositionAttention,
    Reading,
    ReleasedFusion,
    Settings,
    dropout,
    parameter,
    session_mean,
    split_key,
)

TORCH_KEYS = {
    "embedding.weight": "items",
    "pos_embedding.weight": "backbone.positions",
    "w_1": "backbone.w_1",
    "w_2": "backbone.w_2",
    "glu1.weight": "backbone.glu_1.kernel.T",
    "glu1.bias": "backbone.glu_1.bias",
    "glu2.weight": "backbone.glu_2.kernel.T",
    "local_agg.a_0": "backbone.a_0",
    "local_agg.a_1": "backbone.a_1",
    "local_agg.a_2": "backbone.a_2",
    "local_agg.a_3": "backbone.a_3",
    "agg_gcn_0.w_1": "backbone.global_w_1",
    "agg_gcn_0.w_2": "backbone.global_w_2",
    "agg_gcn_0.w_3": "backbone.global_w_3",
}
RELEASED = ReleasedFusion(parts=1, bias=False, weight=0.7, dropout=0.6, trains_fusion=False)
READS = ItemGraph
RATES = ("dropout_global", "dropout_local")
SLOPE = 0.2


class GCEGNN(PositionAttention):
    """Session-level and global-level item vectors, read out with reversed positions."""

    def __init__(self, d: int, n_positions: int, item_graph: ItemGraph, *, rngs: nnx.Rngs) -> None:
        self.neighbors = Constant(jnp.asarray(item_graph.neighbors))
        self.counts = Constant(jnp.asarray(item_graph.counts))
        self.a_0 = parameter(d, d, 1, rngs=rngs)
        self.a_1 = parameter(d, d, 1, rngs=rngs)
        self.a_2 = parameter(d, d, 1, rngs=rngs)
        self.a_3 = parameter(d, d, 1, rngs=rngs)
        self.global_w_1 = parameter(d, d + 1, d, rngs=rngs)
        self.global_w_2 = parameter(d, d, 1, rngs=rngs)
        self.global_w_3 = parameter(d, 2 * d, d, rngs=rngs)
        self._add_attention(d, n_positions, use_bias=False, rngs=rngs)

    def __call__(
        self,
        item_vectors: Float[Array, "items d"],
        batch: SessionBatch,
        *,
        dropout_global: Float[Array, ""] | float | None = None,
        dropout_local: Float[Array, ""] | float | None = None,
        key: PRNGKeyArray | None = None,
        **_: object,
    ) -> Reading:
        """Session vectors from both levels; dropout only where a key is given."""
        global_key, local_key = split_key(key)
        h = item_vectors[batch.graph.nodes]
        local = dropout(self.session_level(h, batch), dropout_local, local_key)
        context = dropout(self.global_level(item_vectors, h, batch), dropout_global, global_key)
        z = self.read_out(local + context, batch)  # eq. (11)
        return Reading(z, (z,))

    def add_items(self, n: int) -> None:
        """Without neighbours in the global graph."""
        self.neighbors, self.counts = (
            Constant(jnp.pad(c[...], ((0, n), (0, 0)))) for c in (self.neighbors, self.counts)
        )

    def session_level(self, h: Float[Array, "nodes d"], batch: SessionBatch) -> Float[Array, "nodes d"]:
        """Attention over the session graph with one weight vector per kind of edge, eq. (7) to (9).

        Kinds: self loop (a_0), from the earlier click (a_1), from the later click (a_2), both ways (a_3).
        """
        senders, receivers, both_ways = batch.graph.senders, batch.graph.receivers, batch.graph.edges.reciprocal
        n, dummy = len(h), len(h) - 1
        is_loop = senders == receivers
        product = h[senders] * h[receivers]
        kinds = jnp.concatenate([self.a_1[...], self.a_2[...], self.a_3[...]], axis=1)
        forward, backward, twofold = jnp.split(product @ kinds, 3, axis=1)
        nodes = jnp.arange(n)
        logits = jnp.concatenate([jnp.where(both_ways[:, None], twofold, forward), backward, (h * h) @ self.a_0])[:, 0]
        # A two-way pair has two edges of its own; self transitions are the loops: both would count twice.
        sinks = jnp.concatenate(
            [jnp.where(is_loop, dummy, receivers), jnp.where(is_loop | both_ways, dummy, senders), nodes]
        )
        weights = segment_softmax(jax.nn.leaky_relu(logits, SLOPE), sinks, n)
        sources = jnp.concatenate([senders, receivers, nodes])
        return segment_sum(weights[:, None] * h[sources], sinks, n)

    def global_level(
        self, item_vectors: Float[Array, "items d"], h: Float[Array, "nodes d"], batch: SessionBatch
    ) -> Float[Array, "nodes d"]:
        """Session-aware attention over each item's global neighbours, eq. (2) to (6)."""
        neighbors: Int[Array, "nodes K"] = self.neighbors[batch.graph.nodes]
        counts = self.counts[batch.graph.nodes]
        s = jnp.pad(session_mean(h, batch), ((0, 1), (0, 0)))[batch.node_session]  # eq. (4)
        h_near = item_vectors[neighbors]
        logits = neighbor_logits(s[:, None, :] * h_near, counts, self.global_w_1[...], self.global_w_2[...])  # eq. (3)
        alpha = jax.nn.softmax(logits, axis=-1)  # eq. (5)
        h_global = jnp.einsum("nk,nkd->nd", alpha, h_near)  # eq. (2)
        return jax.nn.relu(jnp.concatenate([h, h_global], 1) @ self.global_w_3)  # eq. (6)


@jax.custom_vjp
def neighbor_logits(
    x: Float[Array, "nodes K d"], counts: Float[Array, "nodes K"], w_1: Float[Array, "d+1 d"], w_2: Float[Array, "d 1"]
) -> Float[Array, "nodes K"]:
    """Eq. (3): LeakyReLU([x ; counts] · w_1) · w_2, with a gradient of two products and one pass over hidden values.

    It is linear in w_2 and, but for the kink, in w_1. So with ∂w_1 = P ⊙ w_2ᵀ, ∂w_2 is the sum of P ⊙ w_1 over rows.
    """
    return _neighbor_logits(x, counts, w_1, w_2)[0]


def _neighbor_logits(x: Any, counts: Any, w_1: Any, w_2: Any) -> tuple[Any, Any]:
    # Beside the features, so that the product that is w_1's gradient has the counts' row as well.
    rows = jnp.concatenate([x, counts[..., None]], axis=-1).reshape(-1, len(w_1))
    hidden = rows @ w_1
    logits = jax.nn.leaky_relu(hidden, SLOPE) @ w_2
    return logits.reshape(counts.shape), (rows, hidden, w_1, w_2)


def _neighbor_logits_gradient(inputs: tuple[Any, ...], g: Any) -> tuple[Any, ...]:
    rows, hidden, w_1, w_2 = inputs
    slopes = jnp.where(hidden >= 0, 1.0, SLOPE) * g.reshape(-1, 1)
    p, of_rows = rows.T @ slopes, (w_1 * w_2[:, 0]).T
    of_x = (slopes @ of_rows[:, :-1]).reshape(*g.shape, -1)
    return of_x, (slopes @ of_rows[:, -1]).reshape(g.shape), p * w_2[:, 0], (w_1 * p).sum(0)[:, None]


neighbor_logits.defvjp(_neighbor_logits, _neighbor_logits_gradient)


def build(settings: Settings, item_graph: ItemGraph, rngs: nnx.Rngs) -> GCEGNN:
    """The backbone for these model settings and the global graph of its training sessions."""
    return GCEGNN(settings.d, settings.n_positions, item_graph, rngs=rngs)
