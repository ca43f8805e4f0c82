"""What at least two backbones share, and the form that all have; SR-GNN's layers, TAGNN's too: backbones/gated.py."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dmsrec_jax.graphs import SessionBatch, segment_softmax

Rate: TypeAlias = Float[Array, ""] | float | None
"""Of dropout; may be traced. None: no dropout in the program."""
UNIT_EPSILON = 1e-12
NO_CLICKS = 1e-37


@runtime_checkable
class Settings(Protocol):
    """What backbones read of `model.ModelSettings`."""

    @property
    def d(self) -> int: ...

    @property
    def n_positions(self) -> int: ...

    @property
    def released_padding(self) -> int | None: ...

    @property
    def order(self) -> int: ...

    @property
    def inner(self) -> int: ...


class Constant(nnx.Variable):
    """Data a model carries but never trains."""


class Fixed(nnx.Variable):
    """What differs from model to model, yet no step changes: switches, and weights the released optimiser misses."""


class Unpenalised(nnx.Param):
    """A parameter that L2 leaves alone."""


class Reading(NamedTuple):
    """What a backbone read from a batch of sessions."""

    z: Float[Array, "rows d"]
    """Session vectors z_S (eq. 8 of the LLM-DMsRec paper): one per session, or several where ``session`` says whose."""
    parts: tuple[Float[Array, "B d"], ...]
    """What the released code fuses with intents, or aligns."""
    session: Int[Array, "rows"] | None = None
    """Owners of the rows of ``z``, ascending, B for padding; None: row b is of session b."""
    memory: Any = None
    """What the backbone's own `Backbone.score` needs beside session vectors."""


class Backbone(nnx.Module):
    """Reads sessions, and scores items against what it read."""

    @abstractmethod
    def __call__(
        self,
        item_vectors: Float[Array, "items d"],
        batch: SessionBatch,
        *,
        key: PRNGKeyArray | None = None,
        **rates: Any,
    ) -> Reading:
        """Reads a packed batch; dropout (``rates``, by the names of `model.Hyper`) only where a key is given."""

    def items(self, table: Float[Array, "items d"]) -> Float[Array, "items d"]:
        """The vectors that clicks are read from and scores are taken with; here those of the table."""
        return table

    def add_items(self, n: int) -> None:
        """Makes room for ``n`` items behind the others, never clicked, in constants with a row for each item."""

    def own_loss(
        self,
        table: Float[Array, "items d"],
        reading: Reading,
        batch: SessionBatch,
        whole_batch: Callable[[Array], Array],
        key: PRNGKeyArray,
        **rates: Any,
    ) -> Float[Array, ""]:
        """A further term of the training loss, of the whole batch; here none.

        Args:
          table: item vectors before `items`.
          reading: of the same batch.
          batch: where devices share one, this device's part.
          whole_batch: makes all rows of the batch of this device's rows.
          key: for what is drawn, the same on all devices.
          rates: as in a call.
        """
        return jnp.zeros(())

    def score(
        self,
        z: Float[Array, "rows d"],
        reading: Reading,
        item_vectors: Float[Array, "items d"],
        scale: float | None,
    ) -> Float[Array, "B items"]:
        """z · Eᵀ, or their cosines × ``scale`` (item vectors are unit then), for all rows of the table.

        Args:
          z: session vectors, in place of ``reading.z``: fused with intents, or the same.
          reading: of the same batch.
          item_vectors: the table, padding row first.
          scale: None: no cosine.
        """
        z = z if scale is None else unit(z) * scale
        return z @ item_vectors.T


class ReleasedFusion(NamedTuple):
    """How the released code fuses intents with `Reading.parts`: one linear map [parts ; z_E ; z_L] → d."""

    parts: int
    """How many."""
    bias: bool
    weight: float
    """The loss weight of the alignment."""
    dropout: float
    """On the encoded intents."""
    trains_projection: bool = False
    """Whether the optimiser holds the map of the intents."""
    trains_fusion: bool = True
    fuses: bool = True
    """Whether the map takes intents, not the parts alone."""
    aligned: tuple[int, int] = (0, 0)
    """The parts aligned with explicit and with latent intents."""
    penalises_bias: bool = True
    """Whether L2 counts the map's bias."""


def uniform(d: int) -> nnx.Initializer:
    """Initial values in ±1/sqrt(d), for every parameter, as the released models reset theirs."""
    bound = d**-0.5

    def initialise(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initialise


def parameter(d: int, *shape: int, rngs: nnx.Rngs) -> nnx.Param:
    """A parameter of ``shape`` with `uniform` initial values."""
    return nnx.Param(uniform(d)(rngs.params(), shape))


def linear(d: int, n_in: int, n_out: int, *, rngs: nnx.Rngs, use_bias: bool = True) -> nnx.Linear:
    """A linear map ``n_in`` → ``n_out`` with `uniform` initial values for kernel and bias."""
    return nnx.Linear(n_in, n_out, use_bias=use_bias, kernel_init=uniform(d), bias_init=uniform(d), rngs=rngs)


def layer_norm(d: int, epsilon: float, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A layer norm whose weights start `uniform` as all others, not at 1."""
    bound = uniform(d)
    return nnx.LayerNorm(d, epsilon=epsilon, scale_init=bound, bias_init=bound, use_fast_variance=False, rngs=rngs)


def head_count(most: int, d: int) -> int:
    """The most heads up to ``most`` that share ``d`` evenly."""
    return max(n for n in range(1, most + 1) if d % n == 0)


def unit(x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
    """Vectors of length one. ``rsqrt(Σx² + ε)`` because the gradient of a plain norm is NaN at 0."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + UNIT_EPSILON)


def dropout(x: Float[Array, "*shape"], rate: Rate, key: PRNGKeyArray | None) -> Float[Array, "*shape"]:
    """Zeroes entries with probability ``rate`` (may be traced) and rescales the rest; identity without rate or key.

    A random number serves two entries, for on a CPU they cost more than the rest: rates are exact to 1/65,536.
    """
    if rate is None or key is None:
        return x
    numbers = jax.random.bits(key, (-(-x.size // 2),))
    halves = jnp.concatenate([numbers & 0xFFFF, numbers >> 16])[: x.size].reshape(x.shape)
    return jnp.where(halves >= jnp.round(rate * 0x10000).astype(jnp.uint32), x / (1.0 - rate), 0.0)


def split_key(key: PRNGKeyArray | None, n: int = 2) -> Any:
    """``n`` keys of one; None each where there is none, and so no dropout."""
    return (None,) * n if key is None else jax.random.split(key, n)


def gated_cell(
    inputs: Float[Array, "rows gates"], hidden: Float[Array, "rows gates"], h: Float[Array, "rows d"]
) -> Float[Array, "rows d"]:
    """One step of a GRU (Cho et al., 2014), eq. (2) to (5) of SR-GNN: h after an input.

    Args:
      inputs: the input's part of the reset, update and new gate, d columns each.
      hidden: that of ``h``.
      h: before.
    """
    i_reset, i_update, i_new = jnp.split(inputs, 3, axis=1)
    h_reset, h_update, h_new = jnp.split(hidden, 3, axis=1)
    reset = jax.nn.sigmoid(i_reset + h_reset)  # eq. (3)
    update = jax.nn.sigmoid(i_update + h_update)  # eq. (2)
    new = jnp.tanh(i_new + reset * h_new)  # eq. (4)
    return new + update * (h - new)  # eq. (5)


def session_mean(h: Float[Array, "nodes d"], batch: SessionBatch) -> Float[Array, "B d"]:
    """Mean over clicks: an item clicked twice counts twice."""
    total = batch.sum_sessions(batch.node_clicks[:, None] * h, batch.node_session)
    return total / jnp.maximum(batch.length, 1)[:, None]


def click_softmax(
    logits: Float[Array, "rows *k"], clicks: Float[Array, "rows"], owner: Int[Array, "rows"], n_owners: int
) -> Float[Array, "rows *k"]:
    """Softmax over an owner's clicks; a row stands for ``clicks`` of them, which share its logit (0: takes no part).

    Args:
      logits: of nodes; a softmax for each place along further axes.
      clicks: how many clicks each row stands for.
      owner: of the rows, mostly sessions; ``n_owners`` for padding.
      n_owners: mostly B.
    """
    return segment_softmax(logits + log_clicks(clicks, logits.ndim), owner, n_owners + 1)


def log_clicks(clicks: Float[Array, "rows"], ndim: int) -> Float[Array, "rows *ones"]:
    """ln ``clicks``, to be added to logits of ``ndim`` axes, so that a row counts that often in a softmax."""
    # Not log 0 = -inf: in the dummy graph, where no row takes part, the softmax would be NaN.
    return jnp.log(jnp.maximum(clicks, NO_CLICKS)).reshape(-1, *(1,) * (ndim - 1))


class PositionAttention(Backbone):
    """What GCE-GNN and DHCN share: soft attention over clicks with reversed positions, eq. (12) to (15) of GCE-GNN."""

    def _add_attention(self, d: int, n_positions: int, *, use_bias: bool, rngs: nnx.Rngs) -> None:
        self.positions = parameter(d, n_positions, d, rngs=rngs)
        self.w_1 = parameter(d, 2 * d, d, rngs=rngs)
        self.b_1 = parameter(d, d, rngs=rngs) if use_bias else None
        # Not of either sign, as released: where the sum of w_2 starts below zero, a session vector starts as MINUS its
        # items and training stays in a poorer optimum (ML-1M, HR@20: 7 instead of 13; docs/results.md).
        self.w_2 = nnx.Param(jnp.abs(parameter(d, d, 1, rngs=rngs)[...]))
        self.glu_1 = linear(d, d, d, rngs=rngs)
        self.glu_2 = linear(d, d, d, rngs=rngs, use_bias=False)

    def read_out(self, h: Float[Array, "nodes d"], batch: SessionBatch) -> Float[Array, "B d"]:
        """Session vectors from node vectors."""
        d = h.shape[1]
        by_position, by_item = self.positions @ self.w_1[:d], h @ self.w_1[d:]
        by_position = by_position if self.b_1 is None else by_position + self.b_1
        z = jnp.tanh(by_position[batch.click_position] + by_item[batch.click_node])  # eq. (12)
        s = jnp.pad(self.glu_2(session_mean(h, batch)), ((0, 1), (0, 0)))[batch.click_session]  # eq. (13)
        beta = jax.nn.sigmoid(self.glu_1(z) + s) @ self.w_2  # eq. (14)
        return batch.sum_sessions(beta * h[batch.click_node], batch.click_session)  # eq. (15)
