"""Full-ranking metrics. Everything starts from ranks: the target's place among all items, 1 = best.

Ranks come in two views, the columns of a run's ``ranks.npy`` (int32 [n, 2]): ``raw``, and ``exclude_seen`` with the
session's own items left out of the list. Ties count against the target. A target that is itself an item of its session
cannot be recommended under exclusion: its rank there is `out_of_reach`.
"""

from typing import Any

import numpy as np

KS = (5, 10, 20)
"""List lengths that are reported."""
VIEWS = ("raw", "exclude_seen")
"""The columns of ``ranks.npy``."""
METRICS = tuple(f"{metric}@{k}" for metric in ("hr", "mrr", "ndcg") for k in KS)
"""Names of the reported metrics, the columns of `contributions`."""


def out_of_reach(n_items: int) -> int:
    """A rank behind every list, however small the catalogue."""
    return n_items + KS[-1]


def hit_rate(ranks, k: int):
    """1 where the target is among the first ``k`` items, else 0; float, shaped as ``ranks``. (The paper's P@K.)"""
    return (ranks <= k) * 1.0


def mrr(ranks, k: int):
    """Reciprocal rank of the target, 0 below place ``k``; float, shaped as ``ranks``."""
    return (ranks <= k) / ranks


def ndcg(ranks, k: int):
    """Discounted gain 1 / log2(rank + 1), 0 below place ``k``; with one target per row the ideal gain is 1."""
    return (ranks <= k) / np.log2(ranks + 1.0)


def contributions(ranks: np.ndarray) -> np.ndarray:
    """What each row adds to each view's metrics, 0 to 1: int [rows, 2] to float64 [rows, views · metrics]."""
    columns = [metric(ranks, k) for metric in (hit_rate, mrr, ndcg) for k in KS]
    return np.stack(columns, axis=-1).reshape(len(ranks), len(VIEWS) * len(METRICS))


def by_view(values: np.ndarray) -> dict[str, dict[str, Any]]:
    """One value (or list) per column of `contributions` as ``{"raw": {"hr@5": …}, "exclude_seen": {…}}``."""
    rows = values.reshape(len(VIEWS), len(METRICS), *values.shape[1:]).tolist()
    return {view: dict(zip(METRICS, row, strict=True)) for view, row in zip(VIEWS, rows, strict=True)}


def summarise(ranks: np.ndarray) -> dict[str, dict[str, float]]:
    """Mean metrics in percent, ``{"raw": {"hr@5": …}, "exclude_seen": {…}}``, of ranks int [rows, 2]."""
    return by_view(100 * contributions(ranks).mean(axis=0))


def rank_targets(scores: np.ndarray, targets: np.ndarray, rows: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Ranks int32 [B, 2] of each session's target, raw and with seen items excluded.

    Args:
      scores: float [B, n_items + 1], column = item id, higher is better; column 0 (padding) is ignored. A NaN counts
        against the target, wherever it stands.
      targets: int [B].
      rows, seen: int [clicks]: session ``rows[j]`` of the batch holds item ``seen[j]``.
    """
    own = np.take_along_axis(scores, targets[:, None], axis=1)
    # Not "1 + how many are better": what is not clearly worse, the target included, counts.
    below = scores[:, 1:] < own
    n_items = below.shape[1]
    raw = n_items - below.sum(axis=1)
    below[rows, seen - 1] = True
    excluded = n_items - below.sum(axis=1)
    excluded[rows[seen == targets[rows]]] = out_of_reach(n_items)
    return np.stack([raw, excluded], axis=1).astype(np.int32)
