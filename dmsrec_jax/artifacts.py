"""The ``.npy`` contract between the two programs: names, dtypes, shapes, hashes, checks.

{train,test}_candidates.npy   int32 [n_sessions, K]   1-based item ids, best first
candidates.json               schema version, dataset hash, K, SHA-256 of each file
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import read_json, read_npy, sha256, staged_folder, write_json, write_npy

SCHEMA_VERSION = 1
PARTS = ("train", "test")


def write_candidates(
    folder: Path, candidates: Mapping[str, np.ndarray], dataset: SessionDataset, *, overwrite: bool = False
) -> None:
    """Writes candidate sets of both parts, whole or not at all.

    Args:
      folder: written anew.
      candidates: int32 [n_sessions, K] for "train" and "test", best first.
      dataset: whose sessions they belong to.
      overwrite: replace a folder that is there.

    Raises:
      InputError: the folder exists, or the candidates do not fit the dataset.
    """
    with staged_folder(folder, marker="candidates.json", overwrite=overwrite) as staged:
        for part in PARTS:
            write_npy(staged / f"{part}_candidates.npy", candidates[part].astype(np.int32))
            _check(staged / f"{part}_candidates.npy", candidates[part], dataset, part)
        files = {f"{part}_candidates.npy": sha256(staged / f"{part}_candidates.npy") for part in PARTS}
        k = int(candidates["test"].shape[1])
        description = {"schema_version": SCHEMA_VERSION, "dataset_hash": dataset.hash, "k": k, "files": files}
        write_json(staged / "candidates.json", description)


def read_candidates(folder: Path, dataset: SessionDataset) -> dict[str, np.ndarray]:
    """Reads candidate sets, memory-mapped int32 [n_sessions, K] for "train" and "test".

    Raises:
      InputError: a file is missing, damaged, or belongs to another dataset.
    """
    description = read_json(folder / "candidates.json")
    files = description.get("files") if isinstance(description, dict) else None
    if not isinstance(files, dict) or description.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"{folder / 'candidates.json'}: not candidates of schema version {SCHEMA_VERSION}")
    if description.get("dataset_hash") != dataset.hash:
        raise InputError(f"{folder}: candidates of another dataset than {dataset.path}")
    found = {}
    for part in PARTS:
        path = folder / f"{part}_candidates.npy"
        if sha256(path) != files.get(path.name):
            raise InputError(f"{path}: its SHA-256 is not the one in candidates.json")
        found[part] = read_npy(path, dtype=np.int32, ndim=2)
        _check(path, found[part], dataset, part)
    return found


def _check(path: Path, candidates: np.ndarray, dataset: SessionDataset, part: str) -> None:
    n = len(dataset.train if part == "train" else dataset.test)
    if len(candidates) != n:
        raise InputError(f"{path}: {len(candidates)} rows where {n} are due")
    bad = np.flatnonzero(((candidates < 1) | (candidates > dataset.n_items)).any(1))
    if len(bad):
        raise InputError(f"{path}: row {bad[0]} holds an item outside 1 to {dataset.n_items}")
