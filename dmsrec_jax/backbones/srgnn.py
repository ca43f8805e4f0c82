"""SR-GNN: Session-based Recommendation with Graph Neural Networks (Wu et al., AAAI 2019).

The released code differs from the paper in one place: its edges carry no weights (a repeated transition counts once),
so the connection matrices are means over distinct predecessors and successors. This is that form.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dmsrec_jax.graphs import SessionBatch, segment_sum
from dmsrec_jax.layers import ReleasedFusion, Settings, linear, parameter

TORCH_KEYS = {
    "embedding.weight": "items",
    "gnn.linear_edge_in.weight": "backbone.edge_in.kernel.T",
    "gnn.linear_edge_in.bias": "backbone.edge_in.bias",
    "gnn.linear_edge_out.weight": "backbone.edge_out.kernel.T",
    "gnn.linear_edge_out.bias": "backbone.edge_out.bias",
    "gnn.b_iah": "backbone.bias_in",
    "gnn.b_oah": "backbone.bias_out",
    "gnn.w_ih": "backbone.gates_message.kernel.T",
    "gnn.b_ih": "backbone.gates_message.bias",
    "gnn.w_hh": "backbone.gates_hidden.kernel.T",
    "gnn.b_hh": "backbone.gates_hidden.bias",
    "linear_one.weight": "backbone.w_1.kernel.T",
    "linear_one.bias": "backbone.w_1.bias",
    "linear_two.weight": "backbone.w_2.kernel.T",
    "linear_two.bias": "backbone.w_2.bias",
    "linear_three.weight": "backbone.w_3.kernel.T",
    "linear_transform.weight": "backbone.transform.kernel.T",
    "linear_transform.bias": "backbone.transform.bias",
}
RELEASED = ReleasedFusion(parts=2, bias=True, weight=0.0, dropout=0.2)


class SRGNN(nnx.Module):
    """One gated graph step over the session graph, then a soft-attention readout."""

    def __init__(self, d: int, *, rngs: nnx.Rngs) -> None:
        self.edge_in = linear(d, d, d, rngs=rngs)
        self.edge_out = linear(d, d, d, rngs=rngs)
        self.bias_in = parameter(d, d, rngs=rngs)
        self.bias_out = parameter(d, d, rngs=rngs)
        self.gates_message = linear(d, 2 * d, 3 * d, rngs=rngs)
        self.gates_hidden = linear(d, d, 3 * d, rngs=rngs)
        self.w_1 = linear(d, d, d, rngs=rngs)
        self.w_2 = linear(d, d, d, rngs=rngs)
        self.w_3 = linear(d, d, 1, rngs=rngs, use_bias=False)
        self.transform = linear(d, 2 * d, d, rngs=rngs)

    def __call__(self, item_vectors: Float[Array, "items d"], batch: SessionBatch, **_: object) -> Float[Array, "B d"]:
        """Session vectors, [B, d]."""
        return self.transform(jnp.concatenate(self.parts(item_vectors, batch), axis=1))  # eq. (7)

    def parts(
        self, item_vectors: Float[Array, "items d"], batch: SessionBatch, **_: object
    ) -> tuple[Float[Array, "B d"], Float[Array, "B d"]]:
        """Global attention and last click, [B, d] each."""
        h = self.propagate(item_vectors[batch.graph.nodes], batch)
        return self.read_out(h, batch), h[batch.last_node]

    def propagate(self, h: Float[Array, "nodes d"], batch: SessionBatch) -> Float[Array, "nodes d"]:
        """One gated step, eq. (1) to (5)."""
        (n, d), graph, edges = h.shape, batch.graph, batch.graph.edges
        # eq. (1): a = [mean over predecessors ; mean over successors] of each node v, summed in rows 2v and 2v + 1.
        sources = jnp.concatenate([graph.senders, graph.receivers])
        sinks = jnp.concatenate([2 * graph.receivers, 2 * graph.senders + 1])
        weights = jnp.concatenate([edges.in_weights, edges.out_weights])
        means = segment_sum(h[sources] * weights[:, None], sinks, 2 * n).reshape(n, 2 * d)
        present = segment_sum(weights, sinks, 2 * n).reshape(n, 2)  # without any neighbour only the bias remains
        # The maps of eq. (1) and of the gates are linear: multiplying the maps first spares two products per node.
        of_in, of_out = jnp.split(self.gates_message.kernel[...], 2)
        by_in = _rows(self.edge_in.kernel, self.edge_in.bias, self.bias_in) @ of_in
        by_out = _rows(self.edge_out.kernel, self.edge_out.bias, self.bias_out) @ of_out
        gates = means @ jnp.concatenate([by_in[:d], by_out[:d]])
        gates += present[:, :1] * by_in[d] + present[:, 1:] * by_out[d]
        gates += by_in[d + 1] + by_out[d + 1] + self.gates_message.bias[...]  # type: ignore[index]
        i_reset, i_update, i_new = jnp.split(gates, 3, axis=1)
        h_reset, h_update, h_new = jnp.split(self.gates_hidden(h), 3, axis=1)
        reset = jax.nn.sigmoid(i_reset + h_reset)  # eq. (3)
        update = jax.nn.sigmoid(i_update + h_update)  # eq. (2)
        new = jnp.tanh(i_new + reset * h_new)  # eq. (4)
        return new + update * (h - new)  # eq. (5)

    def read_out(self, h: Float[Array, "nodes d"], batch: SessionBatch) -> Float[Array, "B d"]:
        """Soft attention against the last click, without softmax, eq. (6)."""
        last = h[batch.last_node]
        query = jnp.pad(self.w_1(last), ((0, 1), (0, 0)))[batch.node_session]
        alpha = self.w_3(jax.nn.sigmoid(query + self.w_2(h)))  # eq. (6)
        # An item clicked twice counts twice; its clicks share one vector, so the sum runs over nodes.
        return batch.sum_sessions(alpha * batch.node_clicks[:, None] * h, batch.node_session)


def _rows(kernel: nnx.Param, *biases: Any) -> Float[Array, "rows d"]:
    """A map's kernel with biases as further rows, so that one product maps them all."""
    return jnp.concatenate([kernel[...], *(bias[...][None] for bias in biases)])


def build(settings: Settings, item_graph: object, rngs: nnx.Rngs) -> SRGNN:
    """The backbone for these model settings; it needs no global graph."""
    return SRGNN(settings.d, rngs=rngs)
