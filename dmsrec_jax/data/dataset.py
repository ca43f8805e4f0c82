"""`SessionDataset`: a folder of CSR ``.npy`` files and ``meta.json``, loaded memory-mapped.

    meta.json                    schema version, name, counts, provenance, SHA-256 of each file
    {train,test}_items.npy       int32 [clicks]      the input clicks of all rows, one row after the other
    {train,test}_offsets.npy     int64 [rows + 1]    row i is items[offsets[i]:offsets[i + 1]], oldest click first
    {train,test}_targets.npy     int32 [rows]        the next click
    {train,test}_chains.npy      int32 [rows]        the whole session a row is a prefix of, ascending from 0
    sessions_items.npy           int32 [...]         whole training sessions (`train_chains` counts these)
    sessions_offsets.npy         int64 [sessions + 1]
    item_ids.json                n_items + 1 strings: the raw id of each item; row 0 (padding) is ""
    titles.json                  optional, n_items + 1 strings; "" where an item has no title

Item ids are 1-based; 0 is padding and never occurs in a file.
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dmsrec_jax.errors import InputError
from dmsrec_jax.files import read_json, read_npy, sha256

SCHEMA_VERSION = 1

_COUNTS = ("items", "train_rows", "test_rows", "train_sessions", "test_sessions")
_FILES = (
    "item_ids.json",
    "sessions_items.npy",
    "sessions_offsets.npy",
    *(f"{split}_{part}.npy" for split in ("train", "test") for part in ("items", "offsets", "targets", "chains")),
)

S = TypeVar("S", bound="Sessions")


@dataclass(frozen=True)
class Sessions:
    """Sessions in CSR form: ``items`` int32 [clicks], ``offsets`` int64 [n + 1]."""

    items: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Clicks per session, int64 [n]."""
        return np.diff(self.offsets)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.items[self.offsets[row] : self.offsets[row + 1]]

    def last(self: S, n: int) -> S:
        """The last ``n`` clicks of each session."""
        lengths = self.lengths
        if lengths.max(initial=0) <= n:
            return self
        from_end = np.repeat(np.asarray(self.offsets[1:]), lengths) - np.arange(len(self.items))
        kept = np.minimum(lengths, n)
        return dataclasses.replace(self, items=self.items[from_end <= n], offsets=np.append(0, np.cumsum(kept)))


@dataclass(frozen=True)
class Split(Sessions):
    """Samples: a session's clicks so far, its next click, and the chain (whole session) it belongs to."""

    targets: np.ndarray
    chains: np.ndarray

    def rows(self, start: int, stop: int) -> "Split":
        """The contiguous rows ``start`` to ``stop`` (exclusive), sharing memory where it can."""
        first, last = self.offsets[start], self.offsets[stop]
        return Split(
            self.items[first:last],
            self.offsets[start : stop + 1] - first,
            self.targets[start:stop],
            self.chains[start:stop],
        )


@dataclass(frozen=True)
class SessionDataset:
    """A prepared data set. `load` reads the folder that ``python -m dmsrec_jax.prepare`` wrote."""

    path: Path
    meta: dict[str, Any]
    train: Split
    test: Split
    sessions: Sessions

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = False) -> "SessionDataset":
        """Opens a dataset folder; arrays stay memory-mapped.

        Args:
          path: the folder.
          verify: also compare each file's SHA-256 with ``meta.json`` (reads everything once).

        Raises:
          InputError: a file is missing, truncated, foreign, inconsistent with the others, or (``verify``) changed.
        """
        path = Path(path)
        meta = read_json(path / "meta.json")
        _check_meta(path / "meta.json", meta)
        if verify:
            for name, digest in meta["files"].items():
                if sha256(path / name) != digest:
                    raise InputError(f"{path / name}: its SHA-256 is not the one in meta.json")
        counts = meta["counts"]
        sessions = Sessions(*_csr(path, "sessions", counts["train_sessions"], counts["items"]))
        train, test = (
            _split(path, split, counts[f"{split}_rows"], counts[f"{split}_sessions"], counts["items"])
            for split in ("train", "test")
        )
        return cls(path, meta, train, test, sessions)

    @property
    def name(self) -> str:
        """The data set's name, such as ``ml-1m``."""
        return self.meta["name"]

    @property
    def n_items(self) -> int:
        """Catalogue size; item ids run from 1 to ``n_items``."""
        return self.meta["counts"]["items"]

    @property
    def longest(self) -> int:
        """Clicks of the longest training or test row."""
        return max(int(part.lengths.max()) for part in (self.train, self.test))

    @property
    def hash(self) -> str:
        """One SHA-256 over the hashes of all files: the identity other artefacts refer to."""
        lines = "".join(f"{name}:{digest}\n" for name, digest in sorted(self.meta["files"].items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def has_same_test(self, other: "SessionDataset") -> bool:
        """Whether both test the same sessions of the same catalogue; training rows may differ."""
        files = self.meta["files"], other.meta["files"]
        ours, theirs = ({name: of[name] for name in of if name.startswith(("item", "test"))} for of in files)
        return ours == theirs and self.n_items == other.n_items

    @cached_property
    def item_ids(self) -> list[str]:
        """Raw item ids, indexed by item id; ``item_ids[0]`` is ""."""
        return self._strings("item_ids.json")

    @cached_property
    def titles(self) -> list[str] | None:
        """Titles indexed by item id, or None where the data set has none."""
        return self._strings("titles.json") if "titles.json" in self.meta["files"] else None

    @property
    def titles_or_empty(self) -> list[str]:
        """Titles indexed by item id, "" for each where the data set has none."""
        return self.titles or [""] * (self.n_items + 1)

    def _strings(self, name: str) -> list[str]:
        values = read_json(self.path / name)
        due = self.n_items + 1
        if not isinstance(values, list) or len(values) != due or not all(isinstance(v, str) for v in values):
            raise InputError(f"{self.path / name}: a list of {due} strings is due")
        return values


def _check_meta(path: Path, meta: Any) -> None:
    if not isinstance(meta, dict) or meta.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"{path}: not a dataset of schema version {SCHEMA_VERSION}")
    counts, files = meta.get("counts"), meta.get("files")
    if not isinstance(counts, dict) or not all(type(counts.get(key)) is int and counts[key] > 0 for key in _COUNTS):
        raise InputError(f"{path}: counts of {', '.join(_COUNTS)} are due")
    if not isinstance(files, dict) or not set(files) >= set(_FILES) or not set(files) <= {*_FILES, "titles.json"}:
        raise InputError(f"{path}: the hashes of {', '.join(_FILES)} are due")
    if not isinstance(meta.get("name"), str):
        raise InputError(f"{path}: a name is due")


def _csr(path: Path, name: str, rows: int, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    items = read_npy(path / f"{name}_items.npy", dtype=np.int32, ndim=1)
    offsets = _rows(path / f"{name}_offsets.npy", np.int64, rows + 1)
    if offsets[0] != 0 or offsets[-1] != len(items) or (np.diff(offsets) < 1).any():
        raise InputError(
            f"{path / f'{name}_offsets.npy'}: does not describe the {len(items)} clicks of {name}_items.npy"
        )
    _check_ids(path / f"{name}_items.npy", items, n_items)
    return items, offsets


def _split(path: Path, name: str, rows: int, n_chains: int, n_items: int) -> Split:
    items, offsets = _csr(path, name, rows, n_items)
    targets = _rows(path / f"{name}_targets.npy", np.int32, rows)
    chains = _rows(path / f"{name}_chains.npy", np.int32, rows)
    _check_ids(path / f"{name}_targets.npy", targets, n_items)
    if chains[0] < 0 or chains[-1] >= n_chains or (np.diff(chains) < 0).any():
        raise InputError(f"{path / f'{name}_chains.npy'}: does not ascend from 0 to below {n_chains}")
    return Split(items, offsets, targets, chains)


def _rows(path: Path, dtype: Any, rows: int) -> np.ndarray:
    array = read_npy(path, dtype=dtype, ndim=1)
    if len(array) != rows:
        raise InputError(f"{path}: {len(array)} entries where {rows} are due")
    return array


def _check_ids(path: Path, ids: np.ndarray, n_items: int) -> None:
    if ids.min() < 1 or ids.max() > n_items:
        row = int(np.flatnonzero((ids < 1) | (ids > n_items))[0])
        raise InputError(f"{path}: entry {row} is item {int(ids[row])}, outside 1 to {n_items}")
