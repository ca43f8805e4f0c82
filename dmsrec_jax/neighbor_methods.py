"""References without learning, after session-rec (Ludewig & Jannach 2018); `neighbors` is the command.

Each ``fit_*`` takes whole training sessions and settings and returns a scorer, a pure function from a batch of sessions
to float32 [B, n_items + 1] (column = item id). Only shared clicks score, so most items tie at 0, which counts against a
target among them.

Differences from session-rec: every training session is searched (no recency sample of 1,000); data sets hold no times,
so STAN's recency counts sessions instead of days; sequential rules and item kNN may sum over all clicks of the session
and damp popular items, with both off as published.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from dmsrec_jax.data import Sessions

Scorer = Callable[[Sessions], np.ndarray]


@dataclass(frozen=True)
class Method:
    """A reference and the values of each setting to choose from, all combinations."""

    fit: Callable[..., Scorer]
    grid: Mapping[str, tuple[Any, ...]]


def fit_pop(sessions: Sessions, n_items: int) -> Scorer:
    """POP: an item's clicks in training, whatever the session."""
    popularity = np.bincount(sessions.items, minlength=n_items + 1).astype(np.float32)
    return lambda batch: np.tile(popularity, (len(batch), 1))


def fit_itemknn(sessions: Sessions, n_items: int, *, decay: float, shrinkage: float) -> Scorer:
    """Item kNN: cosine of the sets of sessions that hold each item, summed over the session's clicks.

    Args:
      decay: weight of a click per later click; 0 looks at the last click only, as published.
      shrinkage: added to each item's support, so that rare items do not win by chance.
    """
    row, item, _ = _distinct(sessions, n_items)
    holds = sparse.csr_array((np.ones(len(item), np.float32), (row, item)), shape=(len(sessions), n_items + 1))
    damped = holds @ _diagonal(np.bincount(item, minlength=n_items + 1) + shrinkage, -0.5)
    similarity = damped.T @ damped
    similarity.setdiag(0)
    return _summed_over_clicks(similarity.tocsr(), decay)


def fit_rules(
    sessions: Sessions, n_items: int, *, decay: float, source_damping: float, target_damping: float, steps: int
) -> Scorer:
    """Sequential rules: a rule a → b weighs Σ 1 / steps from a to b, over all sessions where b comes after a.

    Args:
      decay: weight of a click per later click; 0 looks at the last click only, as published.
      source_damping, target_damping: a rule is divided by these powers of the clicks on a and b; 0 as published.
      steps: most steps from a to b.
    """
    owner = np.repeat(np.arange(len(sessions)), sessions.lengths)
    rules = sparse.csr_array((n_items + 1, n_items + 1), dtype=np.float32)
    for step in range(1, min(steps, int(sessions.lengths.max()) - 1) + 1):
        inside = owner[step:] == owner[:-step]
        ends = sessions.items[:-step][inside], sessions.items[step:][inside]
        rules += sparse.csr_array((np.full(len(ends[0]), 1 / step, np.float32), ends), shape=rules.shape)
    clicks = np.bincount(sessions.items, minlength=n_items + 1) + 1
    return _summed_over_clicks(_diagonal(clicks, -source_damping) @ rules @ _diagonal(clicks, -target_damping), decay)


def fit_vsknn(sessions: Sessions, n_items: int, *, k: int) -> Scorer:
    """V-SKNN (Ludewig & Jannach 2018): the k training sessions most like this one vote for their items.

    Similarity is the cosine with clicks weighted position / length ("div"); a vote weighs similarity / place, counted
    from the end, of the last click the two share.
    """
    index = _index(sessions, n_items, np.ones(len(sessions)))

    def score(batch: Sessions) -> np.ndarray:
        votes = _neighbor_clicks(batch, index, k, lambda steps, length: 1 - steps / length)
        return votes.sum(votes.similarity / (votes.shared_steps + 1))

    return score


def fit_stan(
    sessions: Sessions, n_items: int, *, k: int, click_span: float, session_span: float, order_span: float
) -> Scorer:
    """STAN (Garg et al. 2019, its three factors): the k nearest sessions vote, with exponential decays.

    Args:
      k: neighbours.
      click_span: clicks back in the session over which a click's weight falls by e (λ1).
      session_span: share of the training sessions over which a neighbour's weight falls by e (λ2); inf for no decay.
      order_span: clicks between an item and the last shared click of a neighbour over which it falls by e (λ3).
    """
    age = np.arange(len(sessions))[::-1] / len(sessions)
    index = _index(sessions, n_items, np.exp(-age / session_span))

    def score(batch: Sessions) -> np.ndarray:
        votes = _neighbor_clicks(batch, index, k, lambda steps, length: np.exp(-steps / click_span))
        return votes.sum(votes.similarity * np.exp(-np.abs(votes.distance) / order_span))

    return score


METHODS: Mapping[str, Method] = {
    "pop": Method(fit_pop, {}),
    "itemknn": Method(fit_itemknn, {"decay": (0.0, 0.5, 0.7), "shrinkage": (20.0, 100.0)}),
    "sr": Method(
        fit_rules,
        {"decay": (0.0, 0.5, 0.7), "source_damping": (0.0, 0.5), "target_damping": (0.0, 0.25), "steps": (10,)},
    ),
    "vsknn": Method(fit_vsknn, {"k": (100, 500)}),
    "stan": Method(
        fit_stan, {"k": (200,), "click_span": (2.0, 4.0, 8.0), "session_span": (np.inf, 1.0), "order_span": (2.0,)}
    ),
}


def _steps_back(sessions: Sessions) -> tuple[np.ndarray, np.ndarray]:
    """The session of each click, and how many clicks follow it there: int64 [clicks] each."""
    row = np.repeat(np.arange(len(sessions)), sessions.lengths)
    return row, sessions.offsets[1:][row] - 1 - np.arange(len(row))


def _distinct(sessions: Sessions, n_items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each session's distinct items at their last click: session, item, clicks after it; by session, then item."""
    row, steps = _steps_back(sessions)
    key = row * (n_items + 1) + sessions.items
    _, last = np.unique(key[::-1], return_index=True)
    last = len(key) - 1 - last
    return row[last], sessions.items[last], steps[last]


def _diagonal(values: np.ndarray, power: float) -> sparse.dia_array:
    return sparse.diags_array((values**power).astype(np.float32))


def _summed_over_clicks(weights: sparse.csr_array, decay: float) -> Scorer:
    """Scores Σ over clicks of decay^(clicks after it) · the clicked item's row of ``weights``."""
    weights = weights.astype(np.float32).tocsr()

    def score(batch: Sessions) -> np.ndarray:
        row, steps = _steps_back(batch)
        clicks = sparse.csr_array(
            (np.float32(decay) ** steps, (row, batch.items)), shape=(len(batch), weights.shape[0])
        )
        clicks.eliminate_zeros()
        return (clicks @ weights).toarray()

    return score


@dataclass(frozen=True)
class _Index:
    """Training sessions by distinct item: CSR parts, steps from the end per entry, and item → sessions weights."""

    offsets: np.ndarray
    items: np.ndarray
    steps: np.ndarray
    by_item: sparse.csr_array


def _index(sessions: Sessions, n_items: int, weight: np.ndarray) -> _Index:
    """Entries of ``by_item`` are ``weight`` / √(distinct items of the session), the neighbour's half of the cosine."""
    row, item, steps = _distinct(sessions, n_items)
    size = np.bincount(row, minlength=len(sessions))
    values = (weight / np.sqrt(size)).astype(np.float32)[row]
    by_item = sparse.csr_array((values, (item, row)), shape=(n_items + 1, len(sessions)))
    return _Index(np.concatenate([[0], np.cumsum(size)]), item, steps, by_item)


@dataclass(frozen=True)
class _Votes:
    """The items of each session's neighbours, one entry each: who votes for what, and how near the two sessions are."""

    shape: tuple[int, int]
    row: np.ndarray
    item: np.ndarray
    similarity: np.ndarray
    shared_steps: np.ndarray
    distance: np.ndarray

    def sum(self, weight: np.ndarray) -> np.ndarray:
        """Adds weighted votes up: float32 [B, n_items + 1]."""
        flat = np.bincount(self.row * self.shape[1] + self.item, weight, minlength=self.shape[0] * self.shape[1])
        return flat.reshape(self.shape).astype(np.float32)


def _neighbor_clicks(
    batch: Sessions, index: _Index, k: int, click_weight: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> _Votes:
    """The k nearest training sessions of each session of the batch, one entry per item of theirs.

    ``shared_steps`` is how many clicks follow the last shared item in the batch's session; ``distance`` is how many
    clicks the entry's item lies from that item in the neighbour.
    """
    shape = len(batch), index.by_item.shape[0]
    row, item, steps = _distinct(batch, shape[1] - 1)
    weights = click_weight(steps, batch.lengths[row]).astype(np.float32)
    pair_row, neighbor, similarity = _largest(sparse.csr_array((weights, (row, item)), shape=shape) @ index.by_item, k)
    steps_of = np.full(shape, np.iinfo(np.int32).max, np.int32)
    steps_of[row, item] = steps

    sizes = np.diff(index.offsets)[neighbor]
    starts = np.cumsum(sizes) - sizes
    pair = np.repeat(np.arange(len(neighbor)), sizes)
    entry = np.arange(len(pair)) + (index.offsets[neighbor] - starts)[pair]
    entry_steps = steps_of[pair_row[pair], index.items[entry]]
    nearest = np.minimum.reduceat(entry_steps, starts) if len(starts) else entry_steps
    # Distinct items lie at distinct steps: exactly one entry per neighbour is the last shared item.
    anchor = index.steps[entry[entry_steps == nearest[pair]]]
    distance = index.steps[entry] - anchor[pair]
    return _Votes(shape, pair_row[pair], index.items[entry], similarity[pair], nearest[pair], distance)


def _largest(matrix: sparse.csr_array, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k largest entries of each row, of equal ones the later columns: row, column, value.

    Args:
      matrix: float32, no entry below 0.
      k: entries to keep; rows with fewer keep all.
    """
    counts = np.diff(matrix.indptr)
    filled = np.arange(counts.max(initial=0)) < counts[:, None]
    # Floats of one sign sort as their bits do: value and column in one integer need no argsort and never tie.
    keys = np.zeros(filled.shape, np.int64)
    keys[filled] = matrix.data.view(np.int32).astype(np.int64) << 32 | matrix.indices
    if keys.shape[1] > k:
        keys = np.partition(keys, -k, axis=1)[:, -k:]
    keys = np.sort(keys, axis=1)
    row, place = np.nonzero(keys)
    kept = keys[row, place]
    return row, kept & 0xFFFFFFFF, (kept >> 32).astype(np.int32).view(np.float32)
