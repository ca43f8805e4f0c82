"""What draws structural and semantic intents together: eq. (10) to (12) of the LLM-DMsRec paper, and its Figure 4.

Each takes structural and semantic vectors, [B, d] each, and which rows count, and gives one number, the mean over
those rows (0 where none counts). Rows that do not count change neither value nor gradients of the others; gradients
are finite everywhere, zero vectors included.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dmsrec_jax.layers import unit

Alignment = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def no_alignment(
    structural: Float[Array, "B d"], semantic: Float[Array, "B d"], counts: Bool[Array, "B"]
) -> Float[Array, ""]:
    """Zero."""
    return jnp.zeros(())


def kl(
    structural: Float[Array, "B d"], semantic: Float[Array, "B d"], counts: Bool[Array, "B"], *, epsilon: float = 0.0
) -> Float[Array, ""]:
    """KL(softmax(structural) ‖ softmax(semantic)) over the hidden dimension, eq. (10) and (11).

    ``epsilon`` is added to each probability without normalising again, as in the released code.
    """
    log_p, log_q = (_log_probabilities(x, epsilon) for x in (structural, semantic))
    return _mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1), counts)


def in_batch(
    structural: Float[Array, "B d"],
    semantic: Float[Array, "B d"],
    counts: Bool[Array, "B"],
    *,
    temperature: float,
) -> Float[Array, ""]:
    """-log softmax over the batch of cosine / ``temperature``, own pair against the other sessions' semantic vectors.

    InfoNCE (van den Oord et al. 2018); Figure 4's "contrastive" is the same with a higher temperature.
    """
    logits = unit(structural) @ unit(semantic).T / temperature
    log_total = jax.nn.logsumexp(jnp.where(_or_self(counts), logits, -jnp.inf), axis=1)
    return _mean(log_total - jnp.diagonal(logits), counts)


def directau(
    structural: Float[Array, "B d"], semantic: Float[Array, "B d"], counts: Bool[Array, "B"]
) -> Float[Array, ""]:
    """Alignment + 0.5 · uniformity of unit vectors (Wang et al., KDD 2022)."""
    a, b = unit(structural), unit(semantic)
    alignment = _mean(jnp.sum((a - b) ** 2, axis=1), counts)
    return alignment + 0.25 * (_uniformity(a, counts) + _uniformity(b, counts))


ALIGNMENTS: dict[str, Alignment] = {
    "none": no_alignment,
    "kl": kl,
    "contrastive": partial(in_batch, temperature=0.5),
    "infonce": partial(in_batch, temperature=0.07),
    "directau": directau,
}
"""By the names of ``--align``, in the order that `model.Hyper` counts them."""
RELEASED_ALIGNMENTS = ALIGNMENTS | {"kl": partial(kl, epsilon=1e-8)}
"""The same as the released code computes them."""


def _log_probabilities(x: Float[Array, "B d"], epsilon: float) -> Float[Array, "B d"]:
    log_p = jax.nn.log_softmax(x, axis=1)
    return jnp.logaddexp(log_p, jnp.log(epsilon)) if epsilon else log_p


def _mean(values: Float[Array, "B"], counts: Bool[Array, "B"]) -> Float[Array, ""]:
    return jnp.sum(jnp.where(counts, values, 0.0)) / jnp.maximum(jnp.sum(counts), 1)


def _or_self(counts: Bool[Array, "B"]) -> Bool[Array, "B B"]:
    """Pairs whose second row counts; a row's pair with itself always, so that no row is empty."""
    return counts[None, :] | jnp.eye(len(counts), dtype=bool)


def _uniformity(x: Float[Array, "B d"], counts: Bool[Array, "B"]) -> Float[Array, ""]:
    """log of the mean of exp(-2 ‖x_i - x_j‖²) over pairs of rows that count; 0 where there is no pair."""
    squares = jnp.sum(x * x, axis=1)
    distances = squares[:, None] + squares[None, :] - 2.0 * x @ x.T
    pair = counts[:, None] & counts[None, :] & ~jnp.eye(len(x), dtype=bool)
    n = jnp.sum(pair)
    # Each pair is there twice, in the sum as in the number. Without a pair log(0) would reach the gradient.
    total = jnp.sum(jnp.where(pair, jnp.exp(-2.0 * distances), 0.0))
    return jnp.where(n > 0, jnp.log(jnp.where(n > 0, total, 1.0)) - jnp.log(jnp.maximum(n, 1)), 0.0)
