"""SHARE: Session-based Recommendation with Hypergraph Attention Networks (Wang et al., SDM 2021).

As released with window 1: a hyperedge for each click and for each two consecutive clicks, duplicates kept; two rounds
of attention between items and hyperedges; one transformer layer, whose output for the last click is the session vector.
Equations are numbered as in docs/backbones.md.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dmsrec_jax.graphs import SessionBatch, segment_sum
from dmsrec_jax.layers import (
    Backbone,
    Rate,
    Reading,
    ReleasedFusion,
    Settings,
    click_softmax,
    dropout,
    layer_norm,
    linear,
    parameter,
    split_key,
)

TORCH_KEYS = {
    "embedding.weight": "items",
    "hgnn.gat1.weight2": "backbone.first.keys",
    "hgnn.gat1.weight3": "backbone.first.edge_keys",
    "hgnn.gat1.word_context.weight": "backbone.first.context",
    "hgnn.gat2.weight": "backbone.second.values",
    "hgnn.gat2.weight2": "backbone.second.keys",
    "hgnn.gat2.weight3": "backbone.second.edge_keys",
    "hgnn.gat2.word_context.weight": "backbone.second.context",
    "layer_stack.0.slf_attn.w_qs.weight": "backbone.query.kernel.T",
    "layer_stack.0.slf_attn.w_ks.weight": "backbone.key.kernel.T",
    "layer_stack.0.slf_attn.w_vs.weight": "backbone.value.kernel.T",
    "layer_stack.0.slf_attn.fc.weight": "backbone.attended.kernel.T",
    "layer_stack.0.slf_attn.layer_norm.weight": "backbone.attention_norm.scale",
    "layer_stack.0.slf_attn.layer_norm.bias": "backbone.attention_norm.bias",
    "layer_stack.0.pos_ffn.w_1.weight": "backbone.w_1.kernel.T",
    "layer_stack.0.pos_ffn.w_1.bias": "backbone.w_1.bias",
    "layer_stack.0.pos_ffn.w_2.weight": "backbone.w_2.kernel.T",
    "layer_stack.0.pos_ffn.w_2.bias": "backbone.w_2.bias",
    "layer_stack.0.pos_ffn.layer_norm.weight": "backbone.forward_norm.scale",
    "layer_stack.0.pos_ffn.layer_norm.bias": "backbone.forward_norm.bias",
    "layer_norm.weight": "backbone.norm.scale",
    "layer_norm.bias": "backbone.norm.bias",
}
RELEASED = ReleasedFusion(parts=2, bias=True, weight=0.2, dropout=0.3, trains_projection=True)
RATES = ("dropout_layers",)


class Hyperedges(NamedTuple):
    """Nodes of a packed batch's pairs of consecutive clicks; the dummy node where there is none.

    A click alone is an edge of its node only, and as many alike as the node has clicks.
    """

    earlier: Int[Array, "clicks"]
    later: Int[Array, "clicks"]
    other: Int[Array, "clicks"]
    """The later node, or the dummy where it is the earlier one: an edge holds a node once."""


class HypergraphAttention(nnx.Module):
    """One round of attention, nodes to hyperedges and back."""

    def __init__(self, d: int, *, maps_values: bool, rngs: nnx.Rngs) -> None:
        self.values = parameter(d, d, d, rngs=rngs) if maps_values else None
        self.keys = parameter(d, d, d, rngs=rngs)
        self.edge_keys = parameter(d, d, d, rngs=rngs)
        self.context = parameter(d, 1, d, rngs=rngs)

    def __call__(
        self, x: Float[Array, "nodes d"], edges: Hyperedges, batch: SessionBatch, rate: Rate, key: PRNGKeyArray | None
    ) -> Float[Array, "nodes d"]:
        """Node vectors of the hyperedges around them; dropout on both attentions' weights."""
        to_edge, to_node = split_key(key)
        (n, d), pairs = x.shape, len(edges.earlier)
        # Keys meet one vector in (S2) and edges in (S4): maps are multiplied first, then nodes with all of them.
        maps = [self.keys[...] @ jnp.concatenate([self.edge_keys[...], self.context[...]]).T * d**-0.5]
        mapped = x @ jnp.concatenate(maps if self.values is None else [*maps, self.values[...]], axis=1)
        mapped = jnp.concatenate([mapped, x], axis=1) if self.values is None else mapped
        ends = mapped[jnp.concatenate([edges.earlier, edges.later])]
        queries, _, values = jnp.split(mapped, [d, d + 1], axis=1)
        (query_1, logit_1, value_1), (query_2, logit_2, value_2) = (
            jnp.split(end, [d, d + 1], axis=1) for end in jnp.split(ends, 2)
        )
        towards = jax.nn.sigmoid(logit_1 - logit_2)  # a softmax over two nodes, eq. (S1), (S2)
        towards = jnp.where((edges.earlier == edges.later)[:, None], 1.0, towards)  # of one node: dropped as one weight
        weights = dropout(jnp.concatenate([jnp.ones((n, 1)), towards, 1.0 - towards]), rate, to_edge)
        alone, first, second = jnp.split(weights, [n, n + pairs])
        of_clicks, of_pairs = alone * values, first * value_1 + second * value_2  # hyperedges, eq. (S3)

        # Rows of the incidence: each node with its lone clicks, each pair with its earlier and its other node.
        node = jnp.concatenate([jnp.arange(n), edges.earlier, edges.other])
        times = jnp.concatenate([batch.node_clicks, jnp.ones(2 * pairs)])
        products = (queries * of_clicks, query_1 * of_pairs, query_2 * of_pairs)
        logits = jnp.concatenate([jnp.sum(product, axis=1) for product in products])
        beta = dropout(click_softmax(logits, times, node, n), rate, to_node)[:, None]  # eq. (S4)
        vectors = jnp.concatenate([of_clicks, of_pairs, of_pairs])
        return segment_sum(beta * vectors, node, n)  # eq. (S5)


class SHARE(Backbone):
    """Hypergraph attention over a session's items, then what its last click attends to."""

    def __init__(self, d: int, *, rngs: nnx.Rngs) -> None:
        self.first = HypergraphAttention(d, maps_values=False, rngs=rngs)
        self.second = HypergraphAttention(d, maps_values=True, rngs=rngs)
        self.query, self.key, self.value, self.attended = (linear(d, d, d, rngs=rngs, use_bias=False) for _ in range(4))
        self.w_1, self.w_2 = (linear(d, d, d, rngs=rngs) for _ in range(2))
        self.attention_norm, self.forward_norm, self.norm = (layer_norm(d, 1e-6, rngs=rngs) for _ in range(3))

    def __call__(
        self,
        item_vectors: Float[Array, "items d"],
        batch: SessionBatch,
        *,
        dropout_layers: Rate = None,
        key: PRNGKeyArray | None = None,
        **_: object,
    ) -> Reading:
        """Session vectors; dropout only where a key is given."""
        keys = list(split_key(key, 5))
        x = item_vectors[batch.graph.nodes]
        edges, h = hyperedges(batch), x
        for layer, layer_key in ((self.first, keys[0]), (self.second, keys[1])):
            within, after = split_key(layer_key)
            h = x + dropout(layer(h, edges, batch, dropout_layers, within), dropout_layers, after)  # eq. (S6)
        u = self.read_out(h, batch, dropout_layers, keys[2:])
        z = self.norm(u)  # eq. (S10)
        return Reading(z, (u, z))

    def read_out(
        self, h: Float[Array, "nodes d"], batch: SessionBatch, rate: Rate, keys: list[PRNGKeyArray | None]
    ) -> Float[Array, "B d"]:
        """The last click's output of a transformer layer. Without positions, clicks of a node are alike to it.

        It asks with one click per session, so keys and values are mapped on that side: B products, not one per node.
        """
        last = h[batch.last_node]
        query = self.query(self.attention_norm(last)) @ self.key.kernel[...].T * h.shape[1] ** -0.5
        logits = jnp.sum(jnp.pad(query, ((0, 1), (0, 0)))[batch.node_session] * h, axis=1)
        gamma = click_softmax(logits, batch.node_clicks, batch.node_session, batch.n_sessions)  # eq. (S7)
        gamma = dropout(gamma, rate, keys[0])[:, None]
        attended = self.value(batch.sum_sessions(gamma * h, batch.node_session))
        a = last + dropout(self.attended(attended), rate, keys[1])  # eq. (S8)
        return a + dropout(self.w_2(jax.nn.relu(self.w_1(self.forward_norm(a)))), rate, keys[2])  # eq. (S9)


def hyperedges(batch: SessionBatch) -> Hyperedges:
    """Pairs of consecutive clicks, duplicates kept."""
    # A session's clicks stand together, the last one at position 0; the dummy graph's clicks are all at position 0.
    is_pair, dummy = batch.click_position > 0, len(batch.node_session) - 1
    earlier = jnp.where(is_pair, batch.click_node, dummy)
    later = jnp.where(is_pair, jnp.roll(batch.click_node, -1), dummy)
    return Hyperedges(earlier, later, jnp.where(earlier == later, dummy, later))


def build(settings: Settings, item_graph: object, rngs: nnx.Rngs) -> SHARE:
    """The backbone for these model settings; it needs no global graph."""
    return SHARE(settings.d, rngs=rngs)
