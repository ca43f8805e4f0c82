"""Chain-clustered bootstrap: prefixes of one session are not independent, so whole chains are drawn, not rows."""

import numpy as np

_BLOCK = 1 << 22


def chain_bootstrap(values: np.ndarray, chains: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Means of ``values`` over resampled chains: float64 [resamples, m].

    Chains are drawn with replacement, as many as there are, and each brings all its rows (Davison & Hinkley 1997, 3.8).
    For two runs compared, give the difference of their values: that pairs them row by row.

    Args:
      values: float [rows, m].
      chains: int [rows]: the session each row is a prefix of.
      resamples: how often to draw.
      seed: the same seed draws the same chains.
    """
    order = np.argsort(chains, kind="stable")
    _, starts, sizes = np.unique(chains[order], return_index=True, return_counts=True)
    sums = np.add.reduceat(values[order], starts, axis=0)
    n = len(starts)
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // n)
    means = np.empty((resamples, values.shape[1]))
    for first in range(0, resamples, block):
        count = min(block, resamples - first)
        drawn = rng.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)
        means[first : first + count] = times @ sums / (times @ sizes)[:, None]
    return means


def interval(means: np.ndarray) -> np.ndarray:
    """Percentile 95 % interval of bootstrap means [resamples, m]: float64 [m, 2], low and high."""
    return np.percentile(means, [2.5, 97.5], axis=0).T
