"""SR-GNN: Session-based Recommendation with Graph Neural Networks (Wu et al., AAAI 2019).

The released code differs from the paper in one place: its edges carry no weights (a repeated transition counts once),
so the connection matrices are means over distinct predecessors and successors. This is that form.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dmsrec_jax.backbones.gated import GATED_TORCH_KEYS, GatedGraph
from dmsrec_jax.graphs import SessionBatch
from dmsrec_jax.layers import Reading, ReleasedFusion, Settings

TORCH_KEYS = GATED_TORCH_KEYS
RELEASED = ReleasedFusion(parts=2, bias=True, weight=0.0, dropout=0.2)


class SRGNN(GatedGraph):
    """One gated graph step over the session graph, then a soft-attention readout."""

    def __call__(self, item_vectors: Float[Array, "items d"], batch: SessionBatch, **_: object) -> Reading:
        """Session vectors of [global attention ; last click]."""
        h = self.propagate(item_vectors[batch.graph.nodes], batch)
        parts = self.read_out(h, batch), h[batch.last_node]
        return Reading(self.transform(jnp.concatenate(parts, axis=1)), parts)  # eq. (7)

    def read_out(self, h: Float[Array, "nodes d"], batch: SessionBatch) -> Float[Array, "B d"]:
        """Soft attention against the last click, without softmax, eq. (6)."""
        alpha = self.attention(h, batch.node_session, h[batch.last_node])
        # An item clicked twice counts twice; its clicks share one vector, so the sum runs over nodes.
        return batch.sum_sessions(alpha * batch.node_clicks[:, None] * h, batch.node_session)


def build(settings: Settings, item_graph: object, rngs: nnx.Rngs) -> SRGNN:
    """The backbone for these model settings; it needs no global graph."""
    return SRGNN(settings.d, rngs=rngs)
