"""Atten-Mixer: Efficiently Leveraging Multi-level User Intent for SBR via Atten-Mixer (Zhang et al., WSDM 2023).

No propagation: the last 1 to 7 clicks ask, each level with several heads, and what they attend to is mixed. Its scores
are cosines of unit vectors, whatever --score. As released but for its padding, which takes part only with
--released-padding. Equations are numbered as in docs/backbones.md.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from dmsrec_jax.graphs import SessionBatch
from dmsrec_jax.layers import (
    Backbone,
    Rate,
    Reading,
    Settings,
    click_softmax,
    dropout,
    head_count,
    layer_norm,
    linear,
    split_key,
    unit,
)

LEVELS = 7
HEADS = 8
"""Where d is a multiple; else `layers.head_count`."""
POWER = 4
"""Of the norm that pools levels."""
SCALE = 16.0
"""Factor on its cosine scores."""
RATES = ("feature_dropout",)
PADDED = True
LOW = -1e9
"""In place of -inf, whose softmax is NaN in an empty place."""

TORCH_KEYS = {
    "embedding.weight": "items",
    "mattn.linear_zero.weight": "backbone.query.kernel.T",
    "mattn.linear_zero.bias": "backbone.query.bias",
    "mattn.linear_one.weight": "backbone.key.kernel.T",
    "mattn.linear_one.bias": "backbone.key.bias",
    "mattn.linear_two.weight": "backbone.value.kernel.T",
    "mattn.linear_two.bias": "backbone.value.bias",
    "mattn.last_layernorm.weight": "backbone.norm.scale",
    "mattn.last_layernorm.bias": "backbone.norm.bias",
    "linear_transform.weight": "backbone.transform.kernel.T",
    "linear_transform.bias": "backbone.transform.bias",
}
TORCH_KEYS |= {f"linear_q.{k - 1}.weight": f"backbone.level_{k}.kernel.T" for k in range(1, LEVELS + 1)}
TORCH_KEYS |= {f"linear_q.{k - 1}.bias": f"backbone.level_{k}.bias" for k in range(1, LEVELS + 1)}


class AttenMixer(Backbone):
    """Attention of the last 1 to 7 clicks, pooled over these levels."""

    def __init__(self, d: int, released_padding: int | None, *, rngs: nnx.Rngs) -> None:
        for k in range(1, LEVELS + 1):
            setattr(self, f"level_{k}", linear(d, k * d, d, rngs=rngs))
        self.query, self.key, self.value = (linear(d, d, d, rngs=rngs) for _ in range(3))
        self.norm = layer_norm(d, 1e-8, rngs=rngs)
        self.transform = linear(d, 2 * d, d, rngs=rngs)
        self.heads = head_count(HEADS, d)
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
        """Session vectors; dropout only where a key is given."""
        click_key, weight_key, item_key = split_key(key, 3)
        h = unit(dropout(item_vectors[batch.graph.nodes], feature_dropout, click_key))
        attend = self.attend if self.released_padding is None else self.attend_as_released
        a = self.norm(attend(self.queries(h, batch), h, batch, feature_dropout, weight_key))
        z = self.transform(jnp.concatenate([a, h[batch.last_node]], axis=1))  # eq. (A6)
        return Reading(z, (z,), memory=(feature_dropout, item_key))

    def queries(self, h: Float[Array, "nodes d"], batch: SessionBatch) -> Float[Array, "B levels d"]:
        """One query for each number of last clicks, eq. (A1) and (A2); clicks before the first one are zero."""
        n, d = batch.n_sessions, h.shape[1]
        # Earlier clicks have places out of range and are dropped; the dummy graph's row goes.
        last = jnp.zeros((n + 1, LEVELS, d)).at[batch.click_session, batch.click_position].set(h[batch.click_node])[:-1]
        levels = [getattr(self, f"level_{k}")(last[:, :k].reshape(n, -1)) for k in range(1, LEVELS + 1)]
        return self.query(jnp.swapaxes(unit(jnp.stack(levels, axis=2)), 1, 2))

    def attend(
        self,
        queries: Float[Array, "B levels d"],
        h: Float[Array, "nodes d"],
        batch: SessionBatch,
        rate: Rate,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "B d"]:
        """What each head attends to among a session's clicks, eq. (A3) to (A5)."""
        n, owner, clicks = batch.n_sessions, batch.node_session, batch.node_clicks
        keys, values = (of(h).reshape(len(h), self.heads, -1) for of in (self.key, self.value))
        asked = jnp.pad(queries, ((0, 1), (0, 0), (0, 0)))[owner].reshape(len(h), LEVELS, self.heads, -1)
        alpha = jax.nn.sigmoid(jnp.einsum("nlhc,nhc->nhl", asked, keys))
        of_nodes = click_softmax(2 * alpha, clicks, owner, n)  # eq. (A3)
        of_clicks = of_nodes / jnp.maximum(clicks, 1)[:, None, None]
        weights = click_softmax(2 * _pool(of_clicks, axis=2), clicks, owner, n)  # eq. (A4)
        weighted = dropout(weights, rate, key)[:, :, None] * values
        return batch.sum_sessions(weighted, owner).reshape(n, -1)  # eq. (A5)

    def attend_as_released(
        self,
        queries: Float[Array, "B levels d"],
        h: Float[Array, "nodes d"],
        batch: SessionBatch,
        rate: Rate,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "B d"]:
        """The same on sessions padded to one width: heads of queries and keys cut across places, padding in (A3)."""
        n, d, width = batch.n_sessions, h.shape[1], (self.released_padding or 0) + 1
        place = jnp.pad(batch.length, (0, 1))[batch.click_session] - 1 - batch.click_position
        rows = jnp.zeros((n + 1, width, d)).at[batch.click_session, place].set(h[batch.click_node])[:-1]
        asked, keys = (x.reshape(n, self.heads, -1, d // self.heads) for x in (queries, self.key(rows)))
        alpha = jax.nn.softmax(2 * jax.nn.sigmoid(asked @ jnp.swapaxes(keys, 2, 3)))
        real = jnp.arange(width) < batch.length[:, None, None]
        weights = jax.nn.softmax(jnp.where(real, 2 * _pool(alpha, axis=2), LOW))
        values = self.value(rows).reshape(n, width, self.heads, -1)
        return jnp.einsum("nhw,nwhc->nhc", dropout(weights, rate, key), values).reshape(n, d)

    def score(
        self,
        z: Float[Array, "B d"],
        reading: Reading,
        item_vectors: Float[Array, "items d"],
        scale: float | None,
    ) -> Float[Array, "B items"]:
        """16 · cosines, eq. (A7); in training with dropout on the items' unit vectors."""
        return SCALE * unit(z) @ dropout(unit(item_vectors), *reading.memory).T


def _pool(weights: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """The norm of the levels' weights."""
    return jnp.sum(weights**POWER, axis=axis) ** (1 / POWER)


def build(settings: Settings, item_graph: object, rngs: nnx.Rngs) -> AttenMixer:
    """The backbone for these model settings; it needs no global graph."""
    return AttenMixer(settings.d, settings.released_padding, rngs=rngs)
