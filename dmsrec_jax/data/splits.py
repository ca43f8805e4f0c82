"""Parts of the training sessions, whole chains together: validation from their end, and folds by chance."""

import numpy as np

from dmsrec_jax.data.dataset import SessionDataset, Sessions, Split
from dmsrec_jax.data.samples import take
from dmsrec_jax.errors import InputError


def validation_split(dataset: SessionDataset, fraction: float) -> tuple[Split, Split, Sessions]:
    """Cuts the last ``fraction`` of training chains off as validation.

    Chains (whole sessions) that give no training row are not counted.

    Returns:
      The training rows, the validation rows, and the whole sessions of the training part alone, which training chains
      still index: a global item graph built on them has not seen validation.

    Raises:
      InputError: either part would be empty, or it is no fraction.
    """
    if not 0 <= fraction < 1:
        raise InputError(f"--validation-fraction {fraction}: at least 0 and below 1 is due")
    train = dataset.train
    first_rows = np.flatnonzero(np.diff(train.chains, prepend=-1))
    kept = n_first(len(first_rows), fraction)
    if not 0 < kept < len(first_rows):
        raise InputError(
            f"--validation-fraction {fraction}: leaves {kept} of {len(first_rows)} training sessions of {dataset.name}"
        )
    cut = int(first_rows[kept])
    end = int(train.chains[cut])
    offsets = dataset.sessions.offsets[: end + 1]
    sessions = Sessions(dataset.sessions.items[: offsets[-1]], offsets)
    return train.rows(0, cut), train.rows(cut, len(train)), sessions


def n_first(n: int, fraction: float) -> int:
    """How many of ``n`` come before the last ``fraction``: n · (1 - fraction), rounded down."""
    return int(round(n * (1.0 - fraction), 6))


def chain_folds(split: Split, folds: int, seed: int) -> np.ndarray:
    """The fold of each row, int64 [rows] from 0: whole chains at random, folds of equally many chains (or one more).

    Raises:
      InputError: there are fewer than 2 folds, or more than chains.
    """
    _, chain = np.unique(split.chains, return_inverse=True)
    n = int(chain[-1]) + 1
    if not 2 <= folds <= n:
        raise InputError(f"--cross-fit {folds}: 2 to {n} folds can be had of the training sessions")
    return (np.random.default_rng(seed).permutation(n) % folds)[chain]


def hold_out(dataset: SessionDataset, held: np.ndarray) -> Sessions:
    """The whole training sessions but for those that the held training rows, int [rows], are prefixes of."""
    left = np.setdiff1d(np.arange(len(dataset.sessions)), dataset.train.chains[held])
    return take(dataset.sessions, left)
