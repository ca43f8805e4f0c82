"""Intent projection and fusion: eq. (6), (7) and (9) of the LLM-DMsRec paper, and the same as released.

A class (explicit, latent) that is empty takes the other's mean. A session without any intent has two learned vectors
in place of z_E and z_L, and is not aligned. So has, in training, a session whose intents ``intent_dropout`` takes away:
that prepares the model for visitors whom no LLM has read.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dmsrec_jax.graphs import BatchIntents, SessionBatch, segment_sum
from dmsrec_jax.layers import (
    Fixed,
    Reading,
    ReleasedFusion,
    Unpenalised,
    dropout,
    linear,
    parameter,
    split_key,
    uniform,
)

ABLATIONS = {"none": (1.0, 1.0), "no-latent": (1.0, 0.0), "no-explicit": (0.0, 1.0)}
"""Whether explicit and latent intents take part. The intents of a class left out are as good as unknown."""
NO_SPLIT = 2**31
"""Folded into a key that a backbone splits as well, for `jax.random.split` folds in 0, 1, 2, …"""


class Fused(NamedTuple):
    """Session vectors and what the alignment compares."""

    z: Float[Array, "rows d"]
    """In place of `Reading.z`."""
    structural: tuple[Float[Array, "B d"], Float[Array, "B d"]]
    """What explicit and latent intents are aligned with."""
    explicit: Float[Array, "B d"]
    latent: Float[Array, "B d"]
    aligned: Bool[Array, "B"]
    """Sessions with intents."""


class Semantics(nnx.Module):
    """Fuses as in the paper: z = W_f [z_S ; W_E x_E + b_E ; W_L x_L + b_L]."""

    def __init__(self, d: int, d_text: int, ablation: str, *, rngs: nnx.Rngs) -> None:
        self._common(d, ablation, rngs)
        self.explicit = linear(d, d_text, d, rngs=rngs)
        self.latent = linear(d, d_text, d, rngs=rngs)
        self.fusion = linear(d, 3 * d, d, rngs=rngs, use_bias=False)

    def _common(self, d: int, ablation: str, rngs: nnx.Rngs) -> None:
        self.no_intent = parameter(d, 2, d, rngs=rngs)
        self.takes_part = Fixed(jnp.array(ABLATIONS[ablation]))

    def __call__(
        self,
        reading: Reading,
        batch: SessionBatch,
        *,
        semantic_dropout: Float[Array, ""] | float | None = None,
        intent_dropout: Float[Array, ""] | float | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Fused:
        """Session vectors of a packed batch; dropout only where a key is given.

        Args:
          reading: what the backbone read from the batch.
          batch: sessions, with or without intents.
          semantic_dropout: on the encoded intents.
          intent_dropout: share of sessions that training treats as if they had no intents.
          key: the backbone's key as well, unsplit: a fused run drops what a plain one drops.
        """
        text_key, intent_key = split_key(None if key is None else jax.random.fold_in(key, NO_SPLIT))
        n = batch.n_sessions
        semantic = jnp.broadcast_to(self.no_intent[...], (n, *self.no_intent.shape))
        known = jnp.zeros(n, bool)
        if batch.intents is not None:
            means, known = mean_intents(batch.intents, self.takes_part[...] > 0)
            if intent_dropout is not None and intent_key is not None:
                known &= ~jax.random.bernoulli(intent_key, intent_dropout, known.shape)
            projected = self._project(dropout(means, semantic_dropout, text_key))
            semantic = jnp.where(known[:, None, None], projected, semantic)
        semantic *= self.takes_part[...][:, None]
        explicit, latent = semantic[:, 0], semantic[:, 1]
        return Fused(self._fuse(reading, explicit, latent), self._structural(reading, batch), explicit, latent, known)

    def _structural(self, reading: Reading, batch: SessionBatch) -> tuple[Float[Array, "B d"], Float[Array, "B d"]]:
        """The structural intent z_S, eq. (8), for both classes; where a session has several vectors, their mean."""
        if reading.session is None:
            return reading.z, reading.z
        n = batch.sum_sessions(jnp.ones(len(reading.z)), reading.session)
        mean = batch.sum_sessions(reading.z, reading.session) / jnp.maximum(n, 1)[:, None]
        return mean, mean

    def _project(self, means: Float[Array, "B 2 d_text"]) -> Float[Array, "B 2 d"]:
        return jnp.stack([self.explicit(means[:, 0]), self.latent(means[:, 1])], axis=1)

    def _fuse(self, reading: Reading, *semantic: Float[Array, "B d"]) -> Float[Array, "rows d"]:
        if reading.session is not None:
            semantic = tuple(jnp.pad(x, ((0, 1), (0, 0)))[reading.session] for x in semantic)
        return self.fusion(jnp.concatenate([reading.z, *semantic], axis=1))  # eq. (9)


class ReleasedSemantics(Semantics):
    """Fuses as the released code does: one map for both classes, each backbone's own parts, weights never trained."""

    def __init__(self, d: int, d_text: int, ablation: str, form: ReleasedFusion, *, rngs: nnx.Rngs) -> None:
        def variable(trained: bool, *shape: int, kind: type[nnx.Param] = nnx.Param) -> nnx.Variable:
            return (kind if trained else Fixed)(uniform(d)(rngs.params(), shape))

        self.fuses, (self.beside_explicit, self.beside_latent) = form.fuses, form.aligned
        self._common(d, ablation, rngs)
        self.w = variable(form.trains_projection, d_text, d)
        self.b = variable(form.trains_projection, d)
        self.fusion_w = variable(form.trains_fusion, (form.parts + 2 * form.fuses) * d, d)
        kind = nnx.Param if form.penalises_bias else Unpenalised
        self.fusion_b = variable(form.trains_fusion, d, kind=kind) if form.bias else None

    def _structural(self, reading: Reading, batch: SessionBatch) -> tuple[Float[Array, "B d"], Float[Array, "B d"]]:
        return reading.parts[self.beside_explicit], reading.parts[self.beside_latent]

    def _project(self, means: Float[Array, "B 2 d_text"]) -> Float[Array, "B 2 d"]:
        return means @ self.w[...] + self.b[...]

    def _fuse(self, reading: Reading, *semantic: Float[Array, "B d"]) -> Float[Array, "B d"]:
        fused = (*reading.parts, *semantic) if self.fuses else reading.parts
        z = jnp.concatenate(fused, axis=1) @ self.fusion_w[...]
        return z if self.fusion_b is None else z + self.fusion_b[...]


def mean_intents(
    intents: BatchIntents, takes_part: Bool[Array, "2"]
) -> tuple[Float[Array, "B 2 d_text"], Bool[Array, "B"]]:
    """x_E and x_L, eq. (6) and (7), and which sessions have any intents of the classes that take part.

    Embeddings may be float16; the mean is taken in float32.
    """
    n = intents.counts.size
    rows = intents.embeddings[intents.ids].astype(jnp.float32)
    sums = segment_sum(rows, intents.owner, n + 1, indices_are_sorted=True)[:-1].reshape(n // 2, 2, -1)
    means = sums / jnp.maximum(intents.counts, 1)[..., None]
    present = (intents.counts > 0) & takes_part
    return jnp.where(present[..., None], means, means[:, ::-1]), present.any(axis=1)
