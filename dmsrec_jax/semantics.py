"""Intent projection and fusion: eq. (6), (7) and (9) of the LLM-DMsRec paper, and the same as released.

A class (explicit, latent) that is empty takes the other's mean. A session without any intent has two learned vectors
in place of z_E and z_L, and is not aligned. So has, in training, a session whose intents ``intent_dropout`` takes away:
that prepares the model for visitors whom no LLM has read.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dmsrec_jax.graphs import BatchIntents, SessionBatch, segment_sum
from dmsrec_jax.layers import Fixed, ReleasedFusion, dropout, linear, parameter, uniform

ABLATIONS = {"none": (1.0, 1.0), "no-latent": (1.0, 0.0), "no-explicit": (0.0, 1.0)}
"""Whether explicit and latent intents take part. The intents of a class left out are as good as unknown."""


class Fused(NamedTuple):
    """Session vectors and what the alignment compares."""

    z: Float[Array, "B d"]
    structural: Float[Array, "B d"]
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
        backbone: Any,
        vectors: Float[Array, "items d"],
        batch: SessionBatch,
        *,
        semantic_dropout: Float[Array, ""] | float | None = None,
        intent_dropout: Float[Array, ""] | float | None = None,
        key: PRNGKeyArray | None = None,
        **rates: Any,
    ) -> Fused:
        """Session vectors of a packed batch; dropout only where a key is given.

        Args:
          backbone: see `backbones`.
          vectors: the item vectors.
          batch: sessions, with or without intents.
          semantic_dropout: on the encoded intents.
          intent_dropout: share of sessions that training treats as if they had no intents.
          key: the backbone's key as well, unsplit: a fused run drops what a plain one drops.
          rates: the backbone's own.
        """
        parts = self._structural(backbone, vectors, batch, key=key, **rates)
        text_key, intent_key = (None, None) if key is None else jax.random.split(jax.random.fold_in(key, 1))
        semantic = jnp.broadcast_to(self.no_intent[...], (len(parts[0]), *self.no_intent.shape))
        known = jnp.zeros(len(parts[0]), bool)
        if batch.intents is not None:
            means, known = mean_intents(batch.intents, self.takes_part[...] > 0)
            if intent_dropout is not None and intent_key is not None:
                known &= ~jax.random.bernoulli(intent_key, intent_dropout, known.shape)
            projected = self._project(dropout(means, semantic_dropout, text_key))
            semantic = jnp.where(known[:, None, None], projected, semantic)
        semantic *= self.takes_part[...][:, None]
        explicit, latent = semantic[:, 0], semantic[:, 1]
        return Fused(self._fuse([*parts, explicit, latent]), parts[0], explicit, latent, known)

    def _structural(self, backbone: Any, vectors: jax.Array, batch: Any, **rates: Any) -> tuple[jax.Array, ...]:
        return (backbone(vectors, batch, **rates),)  # eq. (8)

    def _project(self, means: Float[Array, "B 2 d_text"]) -> Float[Array, "B 2 d"]:
        return jnp.stack([self.explicit(means[:, 0]), self.latent(means[:, 1])], axis=1)

    def _fuse(self, parts: list[jax.Array]) -> Float[Array, "B d"]:
        return self.fusion(jnp.concatenate(parts, axis=1))  # eq. (9)


class ReleasedSemantics(Semantics):
    """Fuses as the released code does: one map for both classes, each backbone's own parts, weights never trained."""

    def __init__(self, d: int, d_text: int, ablation: str, form: ReleasedFusion, *, rngs: nnx.Rngs) -> None:
        def variable(trained: bool, *shape: int) -> nnx.Variable:
            return (nnx.Param if trained else Fixed)(uniform(d)(rngs.params(), shape))

        self._common(d, ablation, rngs)
        self.w = variable(form.trains_projection, d_text, d)
        self.b = variable(form.trains_projection, d)
        self.fusion_w = variable(form.trains_fusion, (form.parts + 2) * d, d)
        self.fusion_b = variable(form.trains_fusion, d) if form.bias else None

    def _structural(self, backbone: Any, vectors: jax.Array, batch: Any, **rates: Any) -> tuple[jax.Array, ...]:
        return backbone.parts(vectors, batch, **rates)

    def _project(self, means: Float[Array, "B 2 d_text"]) -> Float[Array, "B 2 d"]:
        return means @ self.w[...] + self.b[...]

    def _fuse(self, parts: list[jax.Array]) -> Float[Array, "B d"]:
        z = jnp.concatenate(parts, axis=1) @ self.fusion_w[...]
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
