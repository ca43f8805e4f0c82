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

from dmsrec_jax.backbones.blocks import Cut, cut_blocks, cut_columns, cut_for, join_blocks, over_blocks
from dmsrec_jax.backbones.gated import GATED_TORCH_KEYS, GatedGraph
from dmsrec_jax.graphs import SessionBatch, segment_max, segment_sum
from dmsrec_jax.layers import (
    Reading,
    ReleasedFusion,
    Settings,
    click_softmax,
    linear,
    log_clicks,
    unit,
)

TORCH_KEYS = GATED_TORCH_KEYS | {"linear_t.weight": "backbone.w_target.kernel.T"}
RELEASED = ReleasedFusion(parts=2, bias=True, weight=0.3, dropout=0.2)
PADDED = True


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
        cut: Cut | None = None,
    ) -> Float[Array, "B items"]:
        """E·z plus E·(target part), eq. (T4) to (T6), ``cut`` into blocks of items as suits the machine.

        A session's vector for an item is never formed: its product with the item is a weighted sum of the clicks'
        products with it. For a catalogue too large to keep these they are computed again for the gradient, two of eight
        matrix products.

        With a ``scale``, z and the nodes are unit vectors × scale / 2, so that scores stay within ± scale.
        """
        clicks: Clicks = reading.memory
        h = clicks.h
        if scale is not None:
            z, h = unit(z) * (scale / 2), unit(h) * (scale / 2)
        rows = Rows(self.w_target(h), h, log_clicks(clicks.counts, 2), clicks.session)
        cut = cut or cut_for(len(h), len(item_vectors))
        return z @ item_vectors.T + attended(rows, item_vectors, len(z), cut)  # eq. (T6)


class Rows(NamedTuple):
    """`Clicks` with what their two products with an item are made of."""

    keys: Float[Array, "rows d"]
    values: Float[Array, "rows d"]
    log_counts: Float[Array, "rows 1"]
    session: Int[Array, "rows"]


class Attention(NamedTuple):
    """Of one block of items, what the gradient needs."""

    weights: Float[Array, "rows block"]
    values: Float[Array, "rows block"]
    total: Float[Array, "sessions block"]
    means: Float[Array, "sessions block"]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def attended(rows: Rows, items: Float[Array, "items d"], n: int, cut: Cut) -> Float[Array, "B items"]:
    """Each item's products with the values, averaged over a session's rows by softmax(item · key + log count).

    Its own gradient, block by block: autodiff takes the softmax's apart into sums by session, the maximum's besides;
    over all rows × items at once each operation reads and writes what no cache holds. ``log_counts`` get none.

    Args:
      rows: of all sessions.
      items: all there are.
      n: B.
      cut: in a loop, blocks are computed again for the gradient; else they wait for it.
    """
    return _attended_forward(rows, items, n, cut)[0]


def _attend(rows: Rows, block: Float[Array, "block d"], n: int) -> Attention:
    logits, values = rows.keys @ block.T + rows.log_counts, rows.values @ block.T  # eq. (T4)
    weights = jnp.exp(logits - segment_max(logits, rows.session, n + 1)[rows.session])
    total = segment_sum(weights, rows.session, n + 1)
    total = jnp.where(total > 0, total, 1.0)  # of empty places
    return Attention(weights, values, total, segment_sum(weights * values, rows.session, n + 1) / total)  # eq. (T5)


def _attended_forward(rows, items, n, cut):
    def one(_, block):
        found = _attend(rows, block, n)
        return None, (found.means[:-1], None if cut.loop else found)

    _, (means, kept) = over_blocks(one, None, cut_blocks(items, cut))
    return join_blocks(means, len(items)), (rows, items, kept)


def _attended_backward(n, cut, saved, gradient):
    rows, items, kept = saved

    def one(of_rows, block, kept, gradient):
        found = _attend(rows, block, n) if cut.loop else kept
        of_values = found.weights * (jnp.pad(gradient, ((0, 1), (0, 0))) / found.total)[rows.session]
        of_logits = of_values * (found.values - found.means[rows.session])
        of_keys, of_h = of_rows
        # As d x items: on the CPU items x d takes 1.6 times as long.
        of_items = rows.keys.T @ of_logits + rows.values.T @ of_values
        return (of_keys + of_logits @ block, of_h + of_values @ block), (of_items,)

    start = jnp.zeros_like(rows.keys), jnp.zeros_like(rows.values)
    blocks = cut_blocks(items, cut), kept, cut_columns(gradient, cut)
    (of_keys, of_values), (of_items,) = over_blocks(one, start, *blocks)
    of_all = rows._replace(keys=of_keys, values=of_values, log_counts=jnp.zeros_like(rows.log_counts), session=None)
    return of_all, join_blocks(of_items, len(items)).T


attended.defvjp(_attended_forward, _attended_backward)


def build(settings: Settings, item_graph: object, rngs: nnx.Rngs) -> TAGNN:
    """The backbone for these model settings; it needs no global graph."""
    return TAGNN(settings.d, settings.released_padding, rngs=rngs)
