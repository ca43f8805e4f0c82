"""MiaSRec: Multi-intent-aware Session-based Recommendation (Choi et al., SIGIR 2024).

A transformer over a session's clicks and their mean; each of them is an intent, those that matter vote for items. Its
scores are cosines of unit vectors, whatever --score. Equations are numbered as in docs/backbones.md, which says where
the released code differs from the paper.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dmsrec_jax.backbones.blocks import Cut, cut_blocks, cut_columns, cut_for, join_blocks, over_blocks
from dmsrec_jax.graphs import SessionBatch, segment_max, segment_sum
from dmsrec_jax.layers import (
    Backbone,
    Rate,
    Reading,
    Settings,
    dropout,
    head_count,
    session_mean,
    split_key,
    unit,
)

HEADS = 2
REPEATS = 2
"""Most occurrences of an item that are told apart."""
OF_MAX = 0.9
"""Weight of the best intent's vote; the mean's is the rest."""
SCALE = 1 / 0.07
"""Factor on its cosine scores."""
RATES = ("feature_dropout",)
PADDED = True
NEWTON_STEPS = 16
"""To a threshold; twice as many clicks take half a step more."""
LOW = -1e9
"""In place of -inf, whose gradients are NaN where nothing else is there."""


def _torch_keys() -> dict[str, str]:
    keys = {"item_embedding.weight": "items"}
    keys |= {"net.position_embedding.weight": "backbone.positions", "net.repeat_embedding.weight": "backbone.repeats"}
    linears = {"net.highway_fn": "highway", "net.importance_fn": "importance"}
    norms = {"net.LayerNorm": "norm"}
    for i, layer in enumerate(("first", "second")):
        theirs = f"net.trm_encoder.layer.{i}"
        for name in ("query", "key", "value"):
            linears[f"{theirs}.multi_head_attention.{name}"] = f"{layer}.{name}"
        linears[f"{theirs}.multi_head_attention.dense"] = f"{layer}.attended"
        linears |= {f"{theirs}.feed_forward.dense_{k}": f"{layer}.w_{k}" for k in (1, 2)}
        norms[f"{theirs}.multi_head_attention.LayerNorm"] = f"{layer}.attention_norm"
        norms[f"{theirs}.feed_forward.LayerNorm"] = f"{layer}.forward_norm"
    for theirs, ours in linears.items():
        keys |= {f"{theirs}.weight": f"backbone.{ours}.kernel.T", f"{theirs}.bias": f"backbone.{ours}.bias"}
    for theirs, ours in norms.items():
        keys |= {f"{theirs}.weight": f"backbone.{ours}.scale", f"{theirs}.bias": f"backbone.{ours}.bias"}
    return keys


TORCH_KEYS = _torch_keys()


class Tokens(NamedTuple):
    """What the transformer reads: for each session its mean and its clicks, next to each other."""

    session: Int[Array, "tokens"]
    """Ascending; B for padding."""
    node: Int[Array, "tokens"]
    place: Int[Array, "tokens"]
    """0: the mean; 1: the LAST click."""
    repeats: Int[Array, "tokens"]
    """How often the session holds the item; 0 for padding."""
    means: Int[Array, "sessions"]
    """Where the means are."""
    rectangles: tuple[tuple[Int[Array, "rows width"], Bool[Array, "rows width"]], ...]
    """Tokens whose rows are whole sessions, and which may be attended to; a row's rest is out of range."""


class Votes(NamedTuple):
    """Which tokens speak for their session, and how items are dropped."""

    owner: Int[Array, "tokens"]
    """The session whose items the token may score highest; B where it does not matter."""
    weights: Float[Array, "tokens"]
    """In the session's mean; a session's sum to 1."""
    rate: Rate
    key: PRNGKeyArray | None


class Layer(nnx.Module):
    """A transformer layer, norms behind the residuals: (R3) to (R5)."""

    def __init__(self, d: int, inner: int, *, rngs: nnx.Rngs) -> None:
        self.query, self.key, self.value, self.attended = (_linear(d, d, rngs) for _ in range(4))
        self.w_1, self.w_2 = _linear(d, inner, rngs), _linear(inner, d, rngs)
        self.attention_norm, self.forward_norm = _layer_norm(d, rngs), _layer_norm(d, rngs)

    def __call__(
        self, x: Float[Array, "tokens d"], tokens: Tokens, rate: Rate, key: PRNGKeyArray | None
    ) -> Float[Array, "tokens d"]:
        """New token vectors."""
        keys, heads = split_key(key, 3), head_count(HEADS, x.shape[1])
        of_all = jnp.stack([of(x) for of in (self.query, self.key, self.value)], axis=1)
        mixed = attend(of_all.reshape(len(x), 3, heads, -1), tokens, rate, keys[0]).reshape(x.shape)  # eq. (R3)
        a = self.attention_norm(x + dropout(self.attended(mixed), rate, keys[1]))  # eq. (R4)
        forward = self.w_2(jax.nn.gelu(self.w_1(a), approximate=False))
        return self.forward_norm(a + dropout(forward, rate, keys[2]))  # eq. (R5)


class MiaSRec(Backbone):
    """A session vector for each token; items are scored by the best and by the mean of those that matter."""

    def __init__(self, d: int, n_positions: int, inner: int, released_padding: int | None, *, rngs: nnx.Rngs) -> None:
        self.positions = nnx.Param(_normal(rngs.params(), (n_positions + 1, d)))
        self.repeats = nnx.Param(_normal(rngs.params(), (REPEATS + 1, d)))
        self.first, self.second = (Layer(d, inner, rngs=rngs) for _ in range(2))
        self.norm = _layer_norm(d, rngs)
        self.highway = _linear(2 * d, d, rngs)
        self.importance = _linear(2 * d, 1, rngs)
        self.released_padding = released_padding

    def __call__(
        self,
        item_vectors: Float[Array, "items d"],
        batch: SessionBatch,
        *,
        feature_dropout: Rate = None,
        key: PRNGKeyArray | None = None,
        **_: object,
    ) -> Reading:
        """Session vectors, one for each token; dropout only where a key is given."""
        keys, rate, width = split_key(key, 5), feature_dropout, self.released_padding
        tokens = packed_tokens(batch) if width is None else padded_tokens(batch, width)
        h = item_vectors[batch.graph.nodes]
        means = jnp.pad(session_mean(h, batch), ((0, 1), (0, 0)))[: len(tokens.means)]
        x = dropout(h[tokens.node].at[tokens.means].set(means), rate, keys[0])
        repeats = self.repeats[jnp.minimum(tokens.repeats, REPEATS)]
        if width is not None:  # as released, what stands for padding is not trained by it
            real = tokens.repeats[:, None] > 0
            x, repeats = (jnp.where(real, rows, jax.lax.stop_gradient(rows)) for rows in (x, repeats))
        u = dropout(self.norm(x + self.positions[tokens.place] + repeats), rate, keys[1])  # eq. (R1), (R2)
        for layer, own in ((self.first, keys[2]), (self.second, keys[3])):
            u = layer(u, tokens, rate, own)
        gate = jax.nn.sigmoid(self.highway(jnp.concatenate([x, u], axis=1)))
        z = gate * x + (1.0 - gate) * u  # eq. (R6)
        matters, weights = self.select(z, tokens, batch)
        votes = Votes(jnp.where(matters, tokens.session, batch.n_sessions), weights, rate, keys[4])
        return Reading(z, (z[tokens.means[: batch.n_sessions]],), tokens.session, votes)

    def select(
        self, z: Float[Array, "tokens d"], tokens: Tokens, batch: SessionBatch
    ) -> tuple[Bool[Array, "tokens"], Float[Array, "tokens"]]:
        """Which tokens matter, and how much, eq. (R7); as released all do, and in the maximum padding, too."""
        if self.released_padding is not None:
            real = (tokens.repeats > 0).astype(z.dtype)
            return jnp.ones(len(z), bool), real / (batch.length + 1)[tokens.session]
        mean = z[tokens.means][tokens.session]
        logits = self.importance(jnp.concatenate([mean, z], axis=1))[:, 0]
        weights = entmax(logits, tokens.session, batch.n_sessions)
        return weights > 0, weights

    def score(
        self,
        z: Float[Array, "tokens d"],
        reading: Reading,
        item_vectors: Float[Array, "items d"],
        scale: float | None,
        cut: Cut | None = None,
    ) -> Float[Array, "B items"]:
        """0.9 · the best token's cosine + 0.1 · their mean, times 1 / 0.07, eq. (R8); ``cut`` as suits the machine."""
        votes: Votes = reading.memory
        n, session = len(reading.parts[0]), reading.session
        z, items = unit(z), unit(dropout(item_vectors, votes.rate, votes.key))
        means = segment_sum(votes.weights[:, None] * z, session, n + 1)[:-1]
        best = best_products(z, items, votes.owner, n + 1, cut or cut_for(len(z), len(items)))[:-1]
        return SCALE * (OF_MAX * best + (1.0 - OF_MAX) * means @ items.T)


def packed_tokens(batch: SessionBatch) -> Tokens:
    """Each session's mean and then its clicks, oldest first; the dummy graph's behind all others."""
    n, clicks, dummy = batch.n_sessions, len(batch.click_node), len(batch.node_session) - 1
    means = jnp.cumulative_sum(batch.length, include_initial=True) + jnp.arange(n + 1)
    at = jnp.arange(clicks) + batch.click_session + 1

    def token(of_mean: Array | int, of_click: Array) -> Array:
        return jnp.zeros(clicks + n + 1, jnp.int32).at[means].set(of_mean).at[at].set(of_click)

    repeats = batch.node_clicks[batch.click_node].astype(jnp.int32)
    places = batch.click_position + 1
    session = token(jnp.arange(n + 1), batch.click_session)
    rectangles = tuple(
        (
            jnp.column_stack([means[own], jnp.where(real, at[click], len(session))]),
            jnp.pad(real, ((0, 0), (1, 0)), constant_values=True),
        )
        for own, click, real in batch.rectangles
    )
    return Tokens(session, token(dummy, batch.click_node), token(0, places), token(1, repeats), means, rectangles)


def padded_tokens(batch: SessionBatch, width: int) -> Tokens:
    """Each session's mean, its clicks, last first, and padding up to ``width`` clicks: as released.

    So is how repeats are counted: the mean passes for a click on item 1.
    """
    n, dummy = batch.n_sessions, len(batch.node_session) - 1
    means = jnp.arange(n) * (width + 1)
    at = batch.click_session * (width + 1) + batch.click_position + 1
    # Out of range and so dropped: the dummy graph's, and what a session has before its last ``width`` clicks.
    at = jnp.where(batch.click_position < width, at, n * (width + 1))
    first = batch.graph.nodes == 1
    repeats = batch.node_clicks.astype(jnp.int32) + first
    of_mean = 1 + batch.sum_sessions(first * (repeats - 1), batch.node_session)

    def token(rest: int, of_mean: Array | int, of_click: Array) -> Array:
        return jnp.full(n * (width + 1), rest, jnp.int32).at[means].set(of_mean).at[at].set(of_click)

    session, place = jnp.divmod(jnp.arange(n * (width + 1)), width + 1)
    node = token(dummy, dummy, batch.click_node)
    counts = token(0, of_mean, repeats[batch.click_node])
    whole = jnp.arange(n * (width + 1)).reshape(n, width + 1)
    return Tokens(session, node, place, counts, means, ((whole, counts[whole] > 0),))


def attend(
    of_all: Float[Array, "tokens 3 heads c"], tokens: Tokens, rate: Rate, key: PRNGKeyArray | None
) -> Float[Array, "tokens heads c"]:
    """What each token attends to among its session's: queries, keys and values in, padding left out.

    Sessions are compared in rectangles of similar ones: work and memory grow with the clicks times their own session's,
    not with the longest session's.
    """
    mixed = jnp.zeros_like(of_all[:, 0])
    for (token, real), own in zip(tokens.rectangles, split_key(key, len(tokens.rectangles)), strict=True):
        query, keys, values = jnp.moveaxis(of_all.at[token].get(mode="clip"), 2, 0)
        logits = jnp.einsum("bqhc,bkhc->bhqk", query, keys) * query.shape[-1] ** -0.5
        weights = dropout(jax.nn.softmax(jnp.where(real[:, None, None], logits, LOW)), rate, own)
        mixed = mixed.at[token].set(jnp.einsum("bhqk,bkhc->bqhc", weights, values), mode="drop")
    return mixed


def entmax(logits: Float[Array, "rows"], owner: Int[Array, "rows"], n_owners: int) -> Float[Array, "rows"]:
    """1.5-entmax over an owner's rows (Peters et al., ACL 2019): like a softmax, but many weights are 0.

    The weights are max(x/2 - τ, 0)²; an owner's τ, which makes their sum 1, is found by Newton's steps from below.

    Args:
      logits: any.
      owner: of the rows; ``n_owners`` for padding.
      n_owners: mostly B.
    """
    x = logits / 2
    x -= jax.lax.stop_gradient(segment_max(x, owner, n_owners + 1))[owner]

    def weights(x: Float[Array, "rows"], tau: Float[Array, "owners"]) -> Float[Array, "rows"]:
        return jnp.maximum(x - tau[owner], 0.0) ** 2

    def newton(x: Float[Array, "rows"], tau: Float[Array, "owners"]) -> Float[Array, "owners"]:
        slope = 2 * segment_sum(jnp.sqrt(weights(jax.lax.stop_gradient(x), tau)), owner, n_owners + 1)
        return tau + (segment_sum(weights(x, tau), owner, n_owners + 1) - 1) / jnp.maximum(slope, 1e-6)

    still = jax.lax.stop_gradient(x)
    tau = jax.lax.fori_loop(0, NEWTON_STEPS, lambda _, tau: newton(still, tau), -jnp.ones(n_owners + 1))
    return weights(x, newton(x, jax.lax.stop_gradient(tau)))  # a last step with gradients has those of the root


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def best_products(
    rows: Float[Array, "rows d"], items: Float[Array, "items d"], owner: Int[Array, "rows"], n_owners: int, cut: Cut
) -> Float[Array, "owners items"]:
    """The largest product of an owner's rows with each item, in blocks of items.

    Its own gradient, which goes to the row that is largest: autodiff would keep all products, or compute them again.
    """
    return _best_products_forward(rows, items, owner, n_owners, cut)[0]


def _best_products_forward(rows, items, owner, n_owners, cut):
    def one(_, block):
        products = rows @ block.T
        best = segment_max(products, owner, n_owners)
        return None, (best, products == best[owner])

    _, (best, largest) = over_blocks(one, None, cut_blocks(items, cut))
    return join_blocks(best, len(items)), (rows, items, owner, largest)


def _best_products_backward(n_owners, cut, saved, gradient):
    rows, items, owner, largest = saved

    def one(of_rows, block, largest, gradient):
        of_products = jnp.where(largest, gradient[owner], 0.0)
        # On the CPU of_products.T @ rows takes 1.6 times as long.
        return of_rows + of_products @ block, (rows.T @ of_products,)

    blocks = cut_blocks(items, cut), largest, cut_columns(gradient, cut)
    of_rows, (of_items,) = over_blocks(one, jnp.zeros_like(rows), *blocks)
    return of_rows, join_blocks(of_items, len(items)).T, None


best_products.defvjp(_best_products_forward, _best_products_backward)


_normal = jax.nn.initializers.normal(0.02)


def _linear(n_in: int, n_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(n_in, n_out, kernel_init=_normal, rngs=rngs)


def _layer_norm(d: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(d, epsilon=1e-12, use_fast_variance=False, rngs=rngs)


def build(settings: Settings, item_graph: object, rngs: nnx.Rngs) -> MiaSRec:
    """The backbone for these model settings; it needs no global graph."""
    return MiaSRec(settings.d, settings.n_positions, settings.inner, settings.released_padding, rngs=rngs)
