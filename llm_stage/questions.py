"""All rows of a data set as one list of questions: each asked once, in the order that shares most of the prompts."""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dmsrec_jax.artifacts import PARTS
from dmsrec_jax.data import SessionDataset, Sessions
from dmsrec_jax.data.samples import take
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import sha256
from llm_stage.engines.base import Questions


class RowSpace(NamedTuple):
    """Training rows, then test rows, and which of them ask the same."""

    sessions: Sessions
    targets: np.ndarray
    """int32 [rows]."""
    candidates: np.ndarray
    """int32 [rows, K]."""
    n_train: int
    """Rows below this one train."""
    order: np.ndarray
    """int64 [questions]: of all rows with the same session and candidates the first, sorted by the session's items, so
    that neighbours share what they can of their prompts: prefixes of one session follow each other."""
    asked_by: np.ndarray
    """int64 [rows]: the row of `order` whose answer a row takes."""

    def questions(self, rows: np.ndarray) -> Questions:
        return Questions(take(self.sessions, rows), self.candidates[rows])


def row_space(dataset: SessionDataset, candidates: dict[str, np.ndarray]) -> RowSpace:
    """Both parts of a data set with their candidates, int32 [n, K] each.

    Raises:
      InputError: the parts have different numbers of candidates.
    """
    parts = (dataset.train, dataset.test)
    if candidates["train"].shape[1] != candidates["test"].shape[1]:
        raise InputError("the candidates of train and test differ in number per session")
    offsets = [dataset.train.offsets, dataset.test.offsets[1:] + dataset.train.offsets[-1]]
    sessions = Sessions(np.concatenate([part.items for part in parts]), np.concatenate(offsets))
    listed = np.concatenate([candidates["train"], candidates["test"]])
    # Big-endian bytes sort as the items themselves do, a prefix before what extends it.
    clicks, bounds = sessions.items.astype(">i4").tobytes(), (4 * sessions.offsets).tolist()
    options, width = np.ascontiguousarray(listed, ">i4").tobytes(), 4 * listed.shape[1]
    keys = [
        (clicks[bounds[row] : bounds[row + 1]], options[row * width : (row + 1) * width])
        for row in range(len(sessions))
    ]
    by_key = sorted(range(len(keys)), key=keys.__getitem__)  # stable: the first of equal rows comes first
    new = np.array([True] + [keys[a] != keys[b] for a, b in itertools.pairwise(by_key)])
    ranked = np.array(by_key)
    order = ranked[new]
    asked_by = np.empty(len(keys), np.int64)
    asked_by[ranked] = order[np.cumsum(new) - 1]
    targets = np.concatenate([part.targets for part in parts])
    return RowSpace(sessions, targets, listed, len(dataset.train), order, asked_by)


def data_identity(dataset: SessionDataset, candidates: Path) -> dict[str, Any]:
    """Hashes of the data set and of the files in the folder ``candidates``, as JSON."""
    files = {part: sha256(candidates / f"{part}_candidates.npy") for part in PARTS}
    return {"dataset": dataset.hash, "candidates": files}


def shard_of(order: np.ndarray, shard: str | None) -> np.ndarray:
    """The questions of shard "i/n", a contiguous part of ``order``; all of them for None.

    Raises:
      InputError: ``shard`` is not of that form with 1 ≤ i ≤ n ≤ questions.
    """
    if shard is None:
        return order
    i, slash, n = shard.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise InputError(f"--shard {shard}: I/N with I from 1 to N is due, such as 2/4")
    if int(n) > len(order):
        raise InputError(f"--shard {shard}: there are {len(order):,} questions, so at most as many shards")
    first, last = ((int(i) - 1) * len(order) // int(n), int(i) * len(order) // int(n))
    return order[first:last]
