"""TAGNN: Target Attentive Graph Neural Networks for Session-based Recommendation (Yu et al., SIGIR 2020).

SR-GNN whose session vector gains, for each item to be scored, what the session holds for that item. As released: the
attention to the last click is a softmax, and the target part is added after the last map. Equations are numbered as in
docs/backbones.md.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dmsrec_jax.backbones.gated import GATED_TORCH_KEYS, GatedGraph
from dmsrec_jax.graphs import SessionBatch, segment_max, segment_sum
from dmsrec_jax.layers import (
    Reading,
    ReleasedFusion,
    Settings,
    click_softmax,
    in_blocks,
    linear,
    log_clicks,
    unit,
)

TORCH_KEYS = GATED_TORCH_KEYS | {"linear_t.weight": "backbone.w_target.kernel.T"}
RELEASED = ReleasedFusion(parts=2, bias=True, weight=0.3, dropout=0.2)
PADDED = True
ITEMS_AT_ONCE = 1024
"""Columns of scores computed together where all at once would be too many: what bounds memory, for any catalogue."""
KEPT = 2**24
"""Clicks x items that are still few enough: two such matrices (64 MiB each) wait for the gradient."""


class Clicks(NamedTuple):
    """What items attend to: the nodes, and as released one more row per session for its padding."""

    h: Float[Array, "rows d"]
    counts: Float[Array, "rows"]
    """Clicks that the row stands for."""
    session: Int[Array, "rows"]


class TAGNN(GatedGraph):
    """A gated step over the session graph, and a session vector of its own for each item."""

    def __init__(self, d: int, released_padding: int | None, *, rngs: nnx.Rngs) -> None:
        super().__init__(d, rngs=rngs)
        self.w_target = linear(d, d, d, rngs=rngs, use_bias=False)
        self.released_padding = released_padding

    def __call__(self, item_vectors: Float[Array, "items d"], batch: SessionBatch, **_: object) -> Reading:
        """Session vectors before the target part, of [global attention ; last click]."""
        h = self.propagate(item_vectors[batch.graph.nodes], batch)
        clicks = self.clicks(h, batch)
        logits = self.attention(clicks.h, clicks.session, h[batch.last_node])
        alpha = click_softmax(logits, clicks.counts, clicks.session, batch.n_sessions)  # eq. (T1)
        s_global = batch.sum_sessions(alpha[: len(h)] * h, batch.node_session)  # eq. (T2)
        parts = s_global, h[batch.last_node]
        memory = clicks._replace(h=clicks.h.at[len(h) :].set(0.0))  # as released, masked between the two attentions
        return Reading(self.transform(jnp.concatenate(parts, axis=1)), parts, memory=memory)  # eq. (T3)

    def clicks(self, h: Float[Array, "nodes d"], batch: SessionBatch) -> Clicks:
        """Nodes by how often they are clicked, and the padding that the released code attends to."""
        clicks = Clicks(h, batch.node_clicks, batch.node_session)
        if self.released_padding is None:
            return clicks
        n = batch.n_sessions
        # The last node is always padding: no item and no neighbour, as the released code's padding node.
        padding = jnp.broadcast_to(h[-1], (n, h.shape[1]))
        counts = jnp.maximum(self.released_padding - batch.length, 0).astype(h.dtype)
        return Clicks(*map(jnp.concatenate, zip(clicks, Clicks(padding, counts, jnp.arange(n)), strict=True)))

    def score(
        self,
        z: Float[Array, "B d"],
        reading: Reading,
        item_vectors: Float[Array, "items d"],
        scale: float | None,
        items_at_once: int | None = None,
    ) -> Float[Array, "B items"]:
        """E·z plus E·(target part), eq. (T4) to (T6), in blocks of ``items_at_once`` items; None: as memory allows.

        A session's vector for an item is never formed: its product with the item is a weighted sum of the clicks'
        products with it. Memory of a block is freed before the next one, in the gradient as well: it costs two of eight
        matrix products again.

        With a ``scale``, z and the nodes are unit vectors × scale / 2, so that scores stay within ± scale.
        """
        clicks: Clicks = reading.memory
        h = clicks.h
        if scale is not None:
            z, h = unit(z) * (scale / 2), unit(h) * (scale / 2)
        keys, weights, n = self.w_target(h), log_clicks(clicks.counts, 2), len(z)

        def scores(items: Float[Array, "block d"]) -> Float[Array, "B block"]:
            target = attended(keys @ items.T + weights, h @ items.T, clicks.session, n)  # eq. (T4), (T5)
            return z @ items.T + target  # eq. (T6)

        if items_at_once is None and len(h) * len(item_vectors) <= KEPT:
            return scores(item_vectors)
        return in_blocks(scores, item_vectors, items_at_once or ITEMS_AT_ONCE)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def attended(
    logits: Float[Array, "rows k"], values: Float[Array, "rows k"], session: Int[Array, "rows"], n: int
) -> Float[Array, "B k"]:
    """Sums ``values`` by session with weights softmax(logits over the session's rows), each column for itself.

    Its own gradient, because autodiff takes the softmax's apart into sums by session, and the maximum's besides: with
    those a step takes 1.6 times as long.
    """
    return _attended_forward(logits, values, session, n)[0]


def _attended_forward(logits, values, session, n):
    weights = jnp.exp(logits - segment_max(logits, session, n + 1)[session])
    total = segment_sum(weights, session, n + 1)
    total = jnp.where(total > 0, total, 1.0)  # of empty places
    means = segment_sum(weights * values, session, n + 1) / total
    return means[:-1], (weights, values, session, total, means)


def _attended_backward(n, saved, gradient):
    weights, values, session, total, means = saved
    of_values = weights * (jnp.pad(gradient, ((0, 1), (0, 0))) / total)[session]
    return of_values * (values - means[session]), of_values, None


attended.defvjp(_attended_forward, _attended_backward)


def build(settings: Settings, item_graph: object, rngs: nnx.Rngs) -> TAGNN:
    """The backbone for these model settings; it needs no global graph."""
    return TAGNN(settings.d, settings.released_padding, rngs=rngs)
