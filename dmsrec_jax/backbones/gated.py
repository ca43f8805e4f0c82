"""What SR-GNN and TAGNN share: a gated step over the session graph, attention against the last click, the last map."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dmsrec_jax.graphs import SessionBatch, segment_sum
from dmsrec_jax.layers import Backbone, gated_cell, linear, parameter

GATED_TORCH_KEYS = {
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


class GatedGraph(Backbone):
    """SR-GNN's layers; equations are those of its paper (Wu et al., AAAI 2019), without edge weights, as released."""

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
        return gated_cell(gates, self.gates_hidden(h), h)

    def attention(
        self, h: Float[Array, "rows d"], session: Int[Array, "rows"], last: Float[Array, "B d"]
    ) -> Float[Array, "rows 1"]:
        """Logits of rows against their session's last click, eq. (6)."""
        query = jnp.pad(self.w_1(last), ((0, 1), (0, 0)))[session]
        return self.w_3(jax.nn.sigmoid(query + self.w_2(h)))


def _rows(kernel: nnx.Param, *biases: Any) -> Float[Array, "rows d"]:
    """A map's kernel with biases as further rows, so that one product maps them all."""
    return jnp.concatenate([kernel[...], *(bias[...][None] for bias in biases)])
