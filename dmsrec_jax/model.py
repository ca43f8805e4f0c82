"""A session model: backbone and scorer, and its loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dmsrec_jax.alignment import ALIGNMENTS, RELEASED_ALIGNMENTS
from dmsrec_jax.backbones import BACKBONES, own_score, rates
from dmsrec_jax.graphs import SessionBatch
from dmsrec_jax.item_graph import ItemGraph, Members
from dmsrec_jax.layers import Constant, Reading, parameter, unit
from dmsrec_jax.semantics import Fused, ReleasedSemantics, Semantics

COSINE_SCALE = 12.0
"""Factor on cosine scores, as in MSGIFSR (Guo et al., WSDM 2022)."""
NEAREST = 3
"""Items whose id embeddings a new item takes the mean of."""


@dataclass(frozen=True)
class ModelSettings:
    """What fixes a model's shapes and program."""

    backbone: str
    n_items: int
    d: int
    score: str
    n_positions: int
    """Clicks read of a session, its last ones; rows of the position table where there is one."""
    n_neighbors: int = 12
    """gcegnn: columns of the global graph."""
    semantics: str | None = None
    """paper or released: how intents are fused. None: plain backbone."""
    d_text: int = 0
    """Width of encoded intents."""
    ablation: str = "none"
    """Intents left out; see `semantics.ABLATIONS`."""
    d_title: int = 0
    """Width of encoded titles; 0: items are ids alone."""
    released_padding: int | None = None
    """Clicks to which sessions are padded, as released, where that matters. None: a session's clicks alone count."""
    order: int = 1
    """msgifsr: clicks of its longest intent units."""
    inner: int = 256
    """miasrec: width of its feed-forward layers."""


class Hyper(NamedTuple):
    """Traced settings: one program trains any values of them. None leaves a dropout out of the program."""

    lr: Any
    lr_decay: Any
    lr_decay_every: Any
    lr_first_decay: Any
    l2: Any
    dropout_global: Any = None
    dropout_local: Any = None
    feature_dropout: Any = None
    dropout_layers: Any = None
    self_supervision: Any = None
    align: Any = None
    """Place of the alignment in `alignment.ALIGNMENTS`."""
    align_weight: Any = None
    """λ of eq. (15)."""
    alpha: Any = None
    """Weight of explicit intents, eq. (12)."""
    beta: Any = None
    """Weight of latent intents, eq. (12)."""
    semantic_dropout: Any = None
    intent_dropout: Any = None


class Representation(NamedTuple):
    """Sessions as they are scored."""

    z: Float[Array, "rows d"]
    """Session vectors, fused with intents in a fused model."""
    reading: Reading
    fused: Fused | None


class SessionModel(nnx.Module):
    """Scores all items for the next click: eq. (8) to (15) of the LLM-DMsRec paper."""

    def __init__(
        self,
        settings: ModelSettings,
        item_graph: ItemGraph | Members | None,
        item_text: np.ndarray | None = None,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        d = settings.d
        # A backbone whose scores are cosines anyway makes its vectors unit where it needs them so.
        self.cosine = settings.score == "cosine" and own_score(settings.backbone) == "dot"
        self.items = parameter(d, settings.n_items + 1, d, rngs=rngs)
        self.rates = rates(settings.backbone)
        self.backbone = BACKBONES[settings.backbone].build(settings, item_graph, rngs)
        self.semantics: Any = _semantics(settings, rngs)
        self.released = settings.semantics == "released"
        titled = item_text is not None
        self.title_map: Any = parameter(d, settings.d_title, d, rngs=rngs) if titled else None
        self.item_text: Any = Constant(jnp.asarray(item_text, jnp.float16)) if titled else None

    def __call__(
        self,
        batch: SessionBatch,
        hyper: Hyper | None = None,
        key: PRNGKeyArray | None = None,
        vectors: Float[Array, "items d"] | None = None,
    ) -> Float[Array, "B items"]:
        """Logits, [B, n_items + 1]; column = item id, and the padding column is -inf. Dropout only with a key.

        Many batches may share their `item_vectors`.
        """
        vectors = self.item_vectors() if vectors is None else vectors
        scores = self.score(self.represent(vectors, batch, hyper, key), vectors)
        return jnp.where(jnp.arange(scores.shape[1]) == 0, -jnp.inf, scores)

    def loss(
        self,
        batch: SessionBatch,
        hyper: Hyper,
        key: PRNGKeyArray | None = None,
        whole_batch: Callable[[Array], Array] = lambda rows: rows,
        batch_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The sum of the sessions' cross-entropies, and what eq. (15) and the backbone add for the whole batch.

        Args:
          batch: sessions; empty places count for nothing.
          hyper: traced settings.
          key: for dropout.
          whole_batch: where a batch is shared by devices, makes all its rows of one device's rows: some alignments
            compare a session with the others of its batch.
          batch_key: for what is drawn once for the whole batch; ``key`` if left out, as where one device has it all.
        """
        vectors = self.item_vectors()
        sessions = self.represent(vectors, batch, hyper, key)
        recommendation = cross_entropy(self.score(sessions, vectors), batch)
        added = jnp.zeros(())
        if key is not None:
            own_key = jax.random.fold_in(key if batch_key is None else batch_key, 2)
            rates = _rates(hyper, *self.rates)
            added += self.backbone.own_loss(self.table(), sessions.reading, batch, whole_batch, own_key, **rates)
        if sessions.fused is not None:
            explicit, latent = self.align(jax.tree.map(whole_batch, sessions.fused), hyper)
            added += hyper.align_weight * (hyper.alpha * explicit + hyper.beta * latent)
        return recommendation, added

    def align(self, fused: Fused, hyper: Hyper) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """L_E and L_L of eq. (11), by the alignment that ``hyper`` names."""
        alignments = (RELEASED_ALIGNMENTS if self.released else ALIGNMENTS).values()
        of_both = [jax.vmap(alignment, in_axes=(0, 0, None)) for alignment in alignments]
        structural, semantic = jnp.stack(fused.structural), jnp.stack([fused.explicit, fused.latent])
        which = jnp.asarray(hyper.align, jnp.int32)
        terms = jax.lax.switch(which, of_both, structural, semantic, fused.aligned)
        explicit, latent = terms * self.semantics.takes_part[...]
        return explicit, latent

    def item_vectors(self) -> Float[Array, "items d"]:
        """What clicks are read from and scores are taken with: the table as the backbone changes it."""
        vectors = self.backbone.items(self.table())
        return unit(vectors) if self.cosine else vectors

    def table(self) -> Float[Array, "items d"]:
        """A vector for each item: its embedding; with titles, id embedding + W · title's vector."""
        vectors = self.items[...]
        if self.title_map is not None:
            vectors += self.item_text[...].astype(jnp.float32) @ self.title_map[...]
        return vectors

    def add_items(self, item_text: np.ndarray) -> None:
        """Adds items never clicked to the end of the catalogue, in place; their titles are all that is known of them.

        Their id part is the mean of those of the `NEAREST` items whose titles are closest by cosine, or of all items
        where a title is missing: scores follow the id parts that were learned, and a title's map alone, or with the
        mean of all, hardly comes before items that were clicked (docs/results.md). In the global graph they have no
        neighbours.

        Args:
          item_text: [m, d_title], their encoded titles.
        """
        ids, known = self.items[...], self.item_text[...].astype(jnp.float32)
        parts = _nearest_means(jnp.asarray(item_text, jnp.float32), known[1:], ids[1:])
        self.items = nnx.Param(jnp.concatenate([ids, parts]))
        self.item_text = Constant(jnp.concatenate([self.item_text[...], jnp.asarray(item_text, jnp.float16)]))
        self.backbone.add_items(len(item_text))

    def represent(
        self,
        vectors: Float[Array, "items d"],
        batch: SessionBatch,
        hyper: Hyper | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Representation:
        """The session vectors: z_S of eq. (8), or z of eq. (9) with the vectors that are aligned."""
        reading = self.backbone(vectors, batch, key=key, **_rates(hyper, *self.rates))
        if self.semantics is None:
            return Representation(reading.z, reading, None)
        fused = self.semantics(reading, batch, key=key, **_rates(hyper, "semantic_dropout", "intent_dropout"))
        return Representation(fused.z, reading, fused)

    def score(self, sessions: Representation, vectors: Float[Array, "items d"]) -> Float[Array, "B items"]:
        """z · Eᵀ, their cosines × 12, or the backbone's own scores, for all rows of the table, the padding row too."""
        return self.backbone.score(sessions.z, sessions.reading, vectors, COSINE_SCALE if self.cosine else None)


def _nearest_means(
    titles: Float[Array, "new d_title"], known: Float[Array, "items d_title"], ids: Float[Array, "items d"]
) -> Float[Array, "new d"]:
    """For each title the mean of the ids of the closest known ones; of all where there is no title."""
    titled = known.any(1)
    nearest = min(NEAREST, int(titled.sum()))
    directions, of_all = unit(known), ids.mean(0)
    if not nearest:
        return jnp.broadcast_to(of_all, (len(titles), len(of_all)))

    def mean(title: Float[Array, "d_title"]) -> Float[Array, "d"]:
        closest = jax.lax.top_k(jnp.where(titled, directions @ title, -jnp.inf), nearest)[1]
        return jnp.where(title.any(), ids[closest].mean(0), of_all)

    return jax.lax.map(mean, titles, batch_size=1024)  # so that memory does not grow with both sizes


def _semantics(settings: ModelSettings, rngs: nnx.Rngs) -> Semantics | None:
    d, d_text, ablation = settings.d, settings.d_text, settings.ablation
    if settings.semantics == "released":
        form = BACKBONES[settings.backbone].RELEASED
        return ReleasedSemantics(d, d_text, ablation, form, rngs=rngs)
    return Semantics(d, d_text, ablation, rngs=rngs) if settings.semantics else None


def _rates(hyper: Hyper | None, *names: str) -> dict[str, Any]:
    return {} if hyper is None else {name: getattr(hyper, name) for name in names}


def cross_entropy(scores: Float[Array, "B items"], batch: SessionBatch) -> Float[Array, ""]:
    """Sum of the sessions' cross-entropies (eq. 14); empty places count for nothing.

    Column 0 (padding) takes no part, whatever it holds.
    """
    losses = _cross_entropies(scores, batch.target)
    return jnp.sum(jnp.where(batch.length > 0, losses, 0.0))


@jax.custom_vjp
def _cross_entropies(scores: Float[Array, "B items"], target: Int[Array, "B"]) -> Float[Array, "B"]:
    """-log softmax(scores)[target] over columns 1 to n_items.

    Its own gradient, because autodiff writes the B x n_items matrix five times (mask, exponentials, one-hot, scaling)
    where once will do: a tenth of a step on Beauty.
    """
    return _cross_entropies_forward(scores, target)[0]


def _cross_entropies_forward(scores, target):
    columns = jnp.arange(scores.shape[1])
    peak = jnp.max(jnp.where(columns == 0, -jnp.inf, scores), axis=1, keepdims=True)
    total = jnp.sum(jnp.where(columns == 0, 0.0, jnp.exp(scores - peak)), axis=1, keepdims=True)
    log_total = peak + jnp.log(total)
    at_target = jnp.take_along_axis(scores, target[:, None], axis=1)
    return (log_total - at_target)[:, 0], (scores, target, log_total)


def _cross_entropies_backward(saved, gradient):
    scores, target, log_total = saved
    columns = jnp.arange(scores.shape[1])
    probability = jnp.where(columns == 0, 0.0, jnp.exp(scores - log_total))
    one_hot = columns == target[:, None]
    return gradient[:, None] * jnp.where(one_hot, probability - 1.0, probability), None


_cross_entropies.defvjp(_cross_entropies_forward, _cross_entropies_backward)
