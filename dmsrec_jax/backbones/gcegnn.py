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
from dmsrec_jax.layers import Constant, ReleasedFusion, Settings, dropout, linear, parameter

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
SLOPE = 0.2


class GCEGNN(nnx.Module):
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
        self.positions = parameter(d, n_positions, d, rngs=rngs)
        self.w_1 = parameter(d, 2 * d, d, rngs=rngs)
        # Not of either sign, as released: where the sum of w_2 starts below zero, a session vector starts as MINUS its
        # items and training stays in a poorer optimum (ML-1M, HR@20: 7 instead of 13; docs/results.md).
        self.w_2 = nnx.Param(jnp.abs(parameter(d, d, 1, rngs=rngs)[...]))
        self.glu_1 = linear(d, d, d, rngs=rngs)
        self.glu_2 = linear(d, d, d, rngs=rngs, use_bias=False)

    def __call__(
        self,
        item_vectors: Float[Array, "items d"],
        batch: SessionBatch,
        *,
        dropout_global: Float[Array, ""] | float | None = None,
        dropout_local: Float[Array, ""] | float | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B d"]:
        """Session vectors, [B, d]; dropout only where a key is given."""
        global_key, local_key = (None, None) if key is None else jax.random.split(key)
        h = item_vectors[batch.graph.nodes]
        local = dropout(self.session_level(h, batch), dropout_local, local_key)
        context = dropout(self.global_level(item_vectors, h, batch), dropout_global, global_key)
        return self.read_out(local + context, batch)  # eq. (11)

    def parts(
        self, item_vectors: Float[Array, "items d"], batch: SessionBatch, **rates: Any
    ) -> tuple[Float[Array, "B d"]]:
        """The session vectors."""
        return (self(item_vectors, batch, **rates),)

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
        s = jnp.pad(_session_mean(h, batch), ((0, 1), (0, 0)))[batch.node_session]  # eq. (4)
        h_near = item_vectors[neighbors]
        w_vector, w_count = self.global_w_1[:-1], self.global_w_1[-1]
        hidden = (s[:, None, :] * h_near) @ w_vector + counts[..., None] * w_count
        alpha = jax.nn.softmax((jax.nn.leaky_relu(hidden, SLOPE) @ self.global_w_2)[..., 0], axis=-1)  # eq. (3), (5)
        h_global = jnp.einsum("nk,nkd->nd", alpha, h_near)  # eq. (2)
        return jax.nn.relu(jnp.concatenate([h, h_global], 1) @ self.global_w_3)  # eq. (6)

    def read_out(self, h: Float[Array, "nodes d"], batch: SessionBatch) -> Float[Array, "B d"]:
        """Soft attention over clicks with reversed positions, eq. (12) to (15)."""
        d = h.shape[1]
        by_position, by_item = self.positions @ self.w_1[:d], h @ self.w_1[d:]
        z = jnp.tanh(by_position[batch.click_position] + by_item[batch.click_node])  # eq. (12)
        s = jnp.pad(self.glu_2(_session_mean(h, batch)), ((0, 1), (0, 0)))[batch.click_session]  # eq. (13)
        beta = jax.nn.sigmoid(self.glu_1(z) + s) @ self.w_2  # eq. (14)
        return batch.sum_sessions(beta * h[batch.click_node], batch.click_session)  # eq. (15)


def _session_mean(h: Float[Array, "nodes d"], batch: SessionBatch) -> Float[Array, "B d"]:
    """Mean over clicks: an item clicked twice counts twice."""
    total = batch.sum_sessions(batch.node_clicks[:, None] * h, batch.node_session)
    return total / jnp.maximum(batch.length, 1)[:, None]


def build(settings: Settings, item_graph: ItemGraph, rngs: nnx.Rngs) -> GCEGNN:
    """The backbone for these model settings and the global graph of its training sessions."""
    return GCEGNN(settings.d, settings.n_positions, item_graph, rngs=rngs)
