"""The ``.npy`` contract between the two programs: names, dtypes, shapes, hashes, checks.

A candidates folder (`write_candidates`):

    candidates.json                      schema version, dataset hash, provenance, K, SHA-256 of each file
    {train,test}_candidates.npy          int32 [n_sessions, K]          1-based item ids, best first

An intents folder (`write_intents`): each distinct intent once, and per session the lists of its intents.

    meta.json                            schema version, dataset hash, provenance, counts, SHA-256 of each file
    intent_titles.npy                    <U… [n_intents]                distinct intents, as the LLM named them
    intent_embeddings.npy                f16 or f32 [n_intents, d_text]
    {train,test}_{explicit,latent}_offsets.npy   int32 [n_sessions + 1]
    {train,test}_{explicit,latent}_ids.npy       int32 [...]            rows of intent_titles
    {train,test}_candidates.npy          int32 [n_sessions, K]
    candidate_titles.npy                 <U… [n_items + 1]              row = item id

An item text folder (`write_item_text`):

    meta.json                            schema version, dataset hash, provenance, counts, SHA-256 of each file
    item_text_embeddings.npy             f16 or f32 [n_items + 1, d_text]   zeros: row 0, items without a title

A new items folder (`write_new_items`), of items that are not in the catalogue:

    meta.json                            schema version, dataset hash, provenance, counts, SHA-256 of each file
    new_item_{ids,titles}.npy            <U… [n]
    new_item_embeddings.npy              f16 or f32 [n, d_text]             of the titles
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import read_json, read_npy, sha256, staged_files, staged_folder, write_json, write_npy

SCHEMA_VERSION = 1
PARTS = ("train", "test")
KINDS = ("explicit", "latent")
_NEW_ITEMS = ("ids", "titles", "embeddings")


def write_candidates(
    folder: Path,
    candidates: Mapping[str, np.ndarray],
    dataset: SessionDataset,
    provenance: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Writes candidate sets of both parts, whole or not at all.

    Args:
      folder: written anew.
      candidates: int32 [n_sessions, K] for "train" and "test", best first.
      dataset: whose sessions they belong to.
      provenance: the run, whether cross-fitted and what else made them; JSON values.
      overwrite: replace a folder that is there.

    Raises:
      InputError: the folder exists, or the candidates do not fit the dataset.
    """
    with staged_folder(folder, marker="candidates.json", overwrite=overwrite) as staged:
        for part in PARTS:
            write_npy(staged / f"{part}_candidates.npy", candidates[part].astype(np.int32))
            _check(staged / f"{part}_candidates.npy", candidates[part], dataset, part)
        k = int(candidates["test"].shape[1])
        _write_description(staged / "candidates.json", dataset, provenance=dict(provenance), k=k)


def read_candidates(folder: Path, dataset: SessionDataset) -> dict[str, np.ndarray]:
    """Reads candidate sets, memory-mapped int32 [n_sessions, K] for "train" and "test".

    Raises:
      InputError: a file is missing, damaged, or belongs to another dataset.
    """
    _check_description(folder / "candidates.json", dataset, [f"{part}_candidates.npy" for part in PARTS])
    return {part: _read_candidates(folder, dataset, part) for part in PARTS}


class IntentLists(NamedTuple):
    """Intents per session in CSR form; a session may have none."""

    offsets: np.ndarray
    """int32 [n_sessions + 1]."""
    ids: np.ndarray
    """int32, rows of the intent table."""


class SessionIntents(NamedTuple):
    """What is known about the sessions of one part of a data set.

    The lists hold what the engine named; where one class is empty and takes the other's mean (eq. 6, 7), the reader
    does so.
    """

    explicit: IntentLists
    latent: IntentLists
    candidates: np.ndarray
    """int32 [n_sessions, K], 1-based item ids, best first."""


class Intents(NamedTuple):
    """An intents folder."""

    titles: np.ndarray
    """<U… [n_intents]."""
    embeddings: np.ndarray
    """float16 or float32 [n_intents, d_text]."""
    train: SessionIntents
    test: SessionIntents


def write_intents(
    folder: Path,
    intents: Intents,
    dataset: SessionDataset,
    provenance: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Writes an intents folder; its ``meta.json`` comes last, so a folder without one is not whole.

    Args:
      folder: may hold other files; they stay.
      intents: of all sessions of both parts.
      dataset: whose sessions they belong to.
      provenance: engine, model, revision, prompt hash, encoder and what else made them; JSON values.
      overwrite: replace intents that are there.

    Raises:
      InputError: the folder holds intents, or the intents do not fit the dataset or each other.
    """
    if (folder / "meta.json").exists() and not overwrite:
        raise InputError(f"{folder}: holds intents already; give --overwrite to replace them")
    titles = dataset.titles_or_empty
    with staged_files(folder, last="meta.json") as staged:
        arrays = {
            "intent_titles": intents.titles,
            "intent_embeddings": intents.embeddings,
            "candidate_titles": np.array(titles, np.str_),
        }
        for part in PARTS:
            of_part: SessionIntents = getattr(intents, part)
            arrays[f"{part}_candidates"] = of_part.candidates.astype(np.int32)
            for kind in KINDS:
                for name, array in getattr(of_part, kind)._asdict().items():
                    arrays[f"{part}_{kind}_{name}"] = array.astype(np.int32)
        for name, array in arrays.items():
            write_npy(staged / f"{name}.npy", array)
        counts = {"intents": len(intents.titles), "d_text": int(intents.embeddings.shape[1])}
        _write_description(staged / "meta.json", dataset, provenance=dict(provenance), counts=counts)
        read_intents(staged, dataset)


def read_intents(folder: Path, dataset: SessionDataset) -> Intents:
    """Reads an intents folder; arrays are memory-mapped.

    Raises:
      InputError: a file is missing, damaged, inconsistent, or belongs to another dataset; embeddings are not finite.
    """
    names = ["intent_titles", "intent_embeddings", "candidate_titles", *(f"{part}_candidates" for part in PARTS)]
    names += [f"{part}_{kind}_{name}" for part in PARTS for kind in KINDS for name in IntentLists._fields]
    _check_description(folder / "meta.json", dataset, [f"{name}.npy" for name in names])
    titles = _read_strings(folder / "intent_titles.npy")
    embeddings = _read_embeddings(folder / "intent_embeddings.npy", len(titles))
    n_titles = len(_read_strings(folder / "candidate_titles.npy"))
    if n_titles != dataset.n_items + 1:
        raise InputError(f"{folder / 'candidate_titles.npy'}: {n_titles} rows where {dataset.n_items + 1} are due")
    parts = {}
    for part in PARTS:
        lists = {kind: _read_lists(folder, part, kind, _rows(dataset, part), len(titles)) for kind in KINDS}
        parts[part] = SessionIntents(**lists, candidates=_read_candidates(folder, dataset, part))
    return Intents(titles, embeddings, **parts)


def write_item_text(
    folder: Path,
    embeddings: np.ndarray,
    dataset: SessionDataset,
    provenance: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Writes the catalogue's encoded titles, whole or not at all.

    Args:
      folder: written anew.
      embeddings: float16 or float32 [n_items + 1, d_text]; zeros in row 0 and for items without a title.
      dataset: whose items they are.
      provenance: encoder, pooling and what else made them; JSON values.
      overwrite: replace a folder that is there.

    Raises:
      InputError: the folder exists, or the embeddings do not fit the dataset.
    """
    with staged_folder(folder, marker="item_text_embeddings.npy", overwrite=overwrite) as staged:
        write_npy(staged / "item_text_embeddings.npy", embeddings)
        titled = int(np.count_nonzero(np.any(embeddings != 0, axis=1)))
        counts = {"d_text": int(embeddings.shape[1]), "items_with_text": titled}
        _write_description(staged / "meta.json", dataset, provenance=dict(provenance), counts=counts)
        read_item_text(staged, dataset)


def read_item_text(folder: Path, dataset: SessionDataset) -> np.ndarray:
    """Reads the catalogue's encoded titles, memory-mapped float16 or float32 [n_items + 1, d_text].

    Raises:
      InputError: a file is missing, damaged, or belongs to another dataset; an embedding is not finite.
    """
    _check_description(folder / "meta.json", dataset, ["item_text_embeddings.npy"])
    return _read_embeddings(folder / "item_text_embeddings.npy", dataset.n_items + 1)


class NewItems(NamedTuple):
    """A new items folder."""

    ids: np.ndarray
    """<U… [n], raw ids, none of them in the catalogue."""
    titles: np.ndarray
    """<U… [n]."""
    embeddings: np.ndarray
    """float16 or float32 [n, d_text]."""
    provenance: Mapping[str, Any]
    """Encoder, pooling and what else made the embeddings; JSON values."""


def write_new_items(folder: Path, items: NewItems, dataset: SessionDataset, *, overwrite: bool = False) -> None:
    """Writes encoded titles of items that are not in a data set's catalogue, whole or not at all.

    Raises:
      InputError: the folder exists, or the arrays do not fit each other.
    """
    with staged_folder(folder, marker="new_item_ids.npy", overwrite=overwrite) as staged:
        for name in _NEW_ITEMS:
            write_npy(staged / f"new_item_{name}.npy", getattr(items, name))
        counts = {"d_text": int(items.embeddings.shape[1]), "items": len(items.ids)}
        _write_description(staged / "meta.json", dataset, provenance=dict(items.provenance), counts=counts)
        read_new_items(staged, dataset)


def read_new_items(folder: Path, dataset: SessionDataset) -> NewItems:
    """Reads encoded titles of items that are not in a data set's catalogue; embeddings are memory-mapped.

    Raises:
      InputError: a file is missing, damaged, or belongs to another dataset; an embedding is not finite.
    """
    description = _check_description(folder / "meta.json", dataset, [f"new_item_{name}.npy" for name in _NEW_ITEMS])
    ids, titles = (_read_strings(folder / f"new_item_{name}.npy") for name in ("ids", "titles"))
    if len(ids) != len(titles):
        raise InputError(f"{folder / 'new_item_titles.npy'}: {len(titles)} rows where {len(ids)} are due")
    embeddings = _read_embeddings(folder / "new_item_embeddings.npy", len(ids))
    return NewItems(ids, titles, embeddings, description["provenance"])


def _write_description(path: Path, dataset: SessionDataset, **fields: Any) -> None:
    files = {file.name: sha256(file) for file in sorted(path.parent.glob("*.npy"))}
    identity = {"schema_version": SCHEMA_VERSION, "dataset_hash": dataset.hash}
    write_json(path, {**identity, **fields, "files": files})


def _check_description(path: Path, dataset: SessionDataset, names: list[str]) -> dict[str, Any]:
    """A folder's description; refused where it is another data set's, or its files ``names`` are not as it says."""
    description = read_json(path)
    files = description.get("files") if isinstance(description, dict) else None
    if not isinstance(files, dict) or description.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"{path}: not of schema version {SCHEMA_VERSION}")
    if not isinstance(description.get("provenance"), dict):
        raise InputError(f"{path}: provenance: a mapping is due, of what made it")
    if description.get("dataset_hash") != dataset.hash:
        raise InputError(f"{path.parent}: made for another dataset than {dataset.path}, by hash")
    for name in names:
        if sha256(path.parent / name) != files.get(name):
            raise InputError(f"{path.parent / name}: its SHA-256 is not the one in {path.name}")
    return description


def _rows(dataset: SessionDataset, part: str) -> int:
    return len(dataset.train if part == "train" else dataset.test)


def _read_candidates(folder: Path, dataset: SessionDataset, part: str) -> np.ndarray:
    path = folder / f"{part}_candidates.npy"
    candidates = read_npy(path, dtype=np.int32, ndim=2)
    _check(path, candidates, dataset, part)
    return candidates


def _read_strings(path: Path) -> np.ndarray:
    # A string array's dtype carries its width, so any width is due.
    array = read_npy(path, dtype=None, ndim=1)
    if array.dtype.kind != "U":
        raise InputError(f"{path}: {array.dtype} where strings are due")
    return array


def _read_embeddings(path: Path, rows: int) -> np.ndarray:
    array = read_npy(path, dtype=None, ndim=2)
    if array.dtype not in (np.float16, np.float32):
        raise InputError(f"{path}: {array.dtype} where float16 or float32 is due")
    if len(array) != rows:
        raise InputError(f"{path}: {len(array)} rows where {rows} are due")
    bad = np.flatnonzero(~np.isfinite(array).all(1))
    if len(bad):
        raise InputError(f"{path}: row {bad[0]} is not finite")
    return array


def _read_lists(folder: Path, part: str, kind: str, rows: int, n_intents: int) -> IntentLists:
    path = folder / f"{part}_{kind}_offsets.npy"
    offsets = read_npy(path, dtype=np.int32, ndim=1)
    ids = read_npy(folder / f"{part}_{kind}_ids.npy", dtype=np.int32, ndim=1)
    if len(offsets) != rows + 1:
        raise InputError(f"{path}: {len(offsets)} entries where {rows + 1} are due")
    if offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 0).any():
        raise InputError(f"{path}: does not describe the {len(ids)} entries of {part}_{kind}_ids.npy")
    if ((ids < 0) | (ids >= n_intents)).any():
        raise InputError(f"{folder / f'{part}_{kind}_ids.npy'}: an intent outside 0 to {n_intents - 1}")
    return IntentLists(offsets, ids)


def _check(path: Path, candidates: np.ndarray, dataset: SessionDataset, part: str) -> None:
    n = _rows(dataset, part)
    if len(candidates) != n:
        raise InputError(f"{path}: {len(candidates)} rows where {n} are due")
    bad = np.flatnonzero(((candidates < 1) | (candidates > dataset.n_items)).any(1))
    if len(bad):
        raise InputError(f"{path}: row {bad[0]} holds an item outside 1 to {dataset.n_items}")
