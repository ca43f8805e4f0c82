"""What at least two backbones share."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

UNIT_EPSILON = 1e-12


@runtime_checkable
class Settings(Protocol):
    """What backbones read of `model.ModelSettings`."""

    @property
    def d(self) -> int: ...

    @property
    def n_positions(self) -> int: ...


class Constant(nnx.Variable):
    """Data a model carries but never trains."""


class Fixed(nnx.Variable):
    """What differs from model to model, yet no step changes: switches, and weights the released optimiser misses."""


class ReleasedFusion(NamedTuple):
    """How the released code fuses intents into a backbone that has ``parts``: one linear map [parts ; z_E ; z_L] → d.

    The first part is aligned with the intents.
    """

    parts: int
    bias: bool
    weight: float
    """The loss weight of the alignment."""
    dropout: float
    """On the encoded intents."""
    trains_projection: bool = False
    """Whether the optimiser holds the map of the intents."""
    trains_fusion: bool = True


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


def unit(x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
    """Vectors of length one. ``rsqrt(Σx² + ε)`` because the gradient of a plain norm is NaN at 0."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + UNIT_EPSILON)


def dropout(
    x: Float[Array, "*shape"], rate: Float[Array, ""] | float | None, key: PRNGKeyArray | None
) -> Float[Array, "*shape"]:
    """Zeroes entries with probability ``rate`` (may be traced) and rescales the rest; identity without rate or key."""
    if rate is None or key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0)
