"""`sessions.npz` with `titles.json`: rows, targets and whole training sessions in one file of integer arrays."""

import html
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from dmsrec_jax.data.config import PrepareNpz
from dmsrec_jax.data.dataset import Sessions
from dmsrec_jax.data.samples import align, infer_chains, prefixes, without_longest
from dmsrec_jax.data.write import Prepared
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import is_text, read_json

MAX_ITEMS = 10_000_000
"""A larger item id is taken for corruption: it would size every table of the models."""
_MAX_BYTES = 1 << 33
_NAMES = tuple(f"{split}_{part}" for split in ("train", "test") for part in ("items", "offsets", "targets"))


def read_npz(config: PrepareNpz) -> Prepared:
    """Reads ``sessions.npz`` and the ``titles.json`` beside it, if any.

    The file holds integer arrays ``{train,test}_items``, ``_offsets``, ``_targets`` and ``all_items``, ``all_offsets``
    (whole training sessions). The rows keep their order. ``titles.json`` maps an item id to its title, or to an object
    with a ``title`` and, as raw id, an ``asin`` or ``movie_id``.

    Raises:
      InputError: a file is missing, truncated, foreign or inconsistent; an id is out of range; a training row is no
        prefix of a whole session; or no test row is left.
    """
    path = config.raw / "sessions.npz" if config.raw.is_dir() else config.raw
    arrays = _read_arrays(path)
    inputs = (path, *(file for file in [path.parent / "titles.json"] if file.exists()))
    item_ids, titles = _read_titles(inputs[1]) if len(inputs) > 1 else (None, None)
    clicks = [name for name in arrays if not name.endswith("offsets")]
    for name in clicks:
        arrays[name] = check_ids(arrays[name], len(item_ids) if item_ids else MAX_ITEMS, f"{path}: {name}")
    if item_ids is None:
        item_ids = [str(i) for i in range(1, 1 + max(int(arrays[name].max(initial=0)) for name in clicks))]
    sessions = csr(arrays["all_items"], arrays["all_offsets"], f"{path}: all")
    train, form = align(
        csr(arrays["train_items"], arrays["train_offsets"], f"{path}: train"),
        check_targets(arrays["train_targets"], arrays["train_offsets"], f"{path}: train"),
        sessions,
        str(path),
    )
    test = infer_chains(
        csr(arrays["test_items"], arrays["test_offsets"], f"{path}: test"),
        check_targets(arrays["test_targets"], arrays["test_offsets"], f"{path}: test"),
        prefixed=form != "one row per session",
    )
    notes = [f"training rows: {form}"]
    if config.augment_prefixes:
        train = prefixes(sessions)
        notes.append("made all prefixes, shortest first")
    if config.drop_last_target:
        rows = len(test)
        test = without_longest(test)
        if not len(test):
            raise InputError(f"{path}: --drop-last-target leaves no test row")
        notes.append(f"test rows: {len(test):,} of {rows:,}, without each session's last target")
    return Prepared(train, test, sessions, item_ids, titles, tuple(notes), inputs)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    wanted = (*_NAMES, "all_items", "all_offsets")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
        missing = [name for name in wanted if f"{name}.npy" not in sizes]
        if missing:
            raise InputError(f"{path}: has no array {missing[0]!r}")
        if sum(sizes[f"{name}.npy"] for name in wanted) > _MAX_BYTES:
            raise InputError(f"{path}: its arrays claim more than {_MAX_BYTES >> 30} GiB")
        with np.load(path, allow_pickle=False) as npz:
            arrays = {name: npz[name] for name in wanted}
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path}: not a whole .npz of plain arrays: {error}") from None
    except MemoryError:
        raise InputError(f"{path}: an array claims more memory than there is") from None
    for name, array in arrays.items():
        if array.dtype.kind not in "iu" or array.ndim != 1:
            raise InputError(f"{path}: {name} is {array.dtype} of rank {array.ndim} where integers of rank 1 are due")
    return arrays


def csr(items: np.ndarray, offsets: np.ndarray, source: str) -> Sessions:
    """Checked sessions from clicks and offsets of any integer type.

    Raises:
      InputError: the offsets do not describe the clicks.
    """
    offsets = offsets.astype(np.int64)
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(items):
        raise InputError(
            f"{source}_offsets do not describe the {len(items)} clicks of {source.rsplit(' ', 1)[-1]}_items"
        )
    if len(empty := np.flatnonzero(np.diff(offsets) < 1)):
        raise InputError(f"{source}_offsets: row {empty[0]} has no click")
    return Sessions(items, offsets)


def check_targets(targets: np.ndarray, offsets: np.ndarray, source: str) -> np.ndarray:
    """``targets``, if there is one per row.

    Raises:
      InputError: there is not.
    """
    if len(targets) != len(offsets) - 1:
        raise InputError(f"{source}_targets: {len(targets)} rows where {len(offsets) - 1} are due")
    return targets


def check_ids(ids: np.ndarray, n_items: int, source: str) -> np.ndarray:
    """``ids`` as int32, if all are within 1 to ``n_items``.

    Raises:
      InputError: one is not; its place is named.
    """
    wrong = np.flatnonzero((ids < 1) | (ids > n_items))
    if len(wrong):
        raise InputError(f"{source}: entry {wrong[0]} is item {ids[wrong[0]]}, outside 1 to {n_items}")
    return ids.astype(np.int32)


def _read_titles(path: Path) -> tuple[list[str], list[str]]:
    """Raw ids and titles of items 1 to n_items, entities such as ``&amp;`` unescaped."""
    entries = read_json(path)
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"{path}: an object of item id to title is due")
    by_id: dict[int, Any] = {}
    for key, value in entries.items():
        try:
            item = int(key)
        except ValueError as error:
            raise InputError(f"{path}: {error}, where an item id is due") from None
        if item in by_id:
            raise InputError(f"{path}: key {key!r}: an earlier key is item {item}, too")
        by_id[item] = value
    n_items = max(by_id)
    if min(by_id) < 1 or n_items > MAX_ITEMS:
        raise InputError(f"{path}: item {min(by_id) if min(by_id) < 1 else n_items} is outside 1 to {MAX_ITEMS}")
    item_ids, titles = [str(i) for i in range(1, n_items + 1)], [""] * n_items
    for item, entry in by_id.items():
        fields: dict[str, Any] = {"title": entry} if isinstance(entry, str) else entry
        title = fields.get("title", "") if isinstance(fields, dict) else None
        if not is_text(title):
            raise InputError(f"{path}: item {item}: a title, or an object with one, is due as text")
        titles[item - 1] = html.unescape(title)
        raw_id = fields.get("asin", fields.get("movie_id", item))
        if type(raw_id) is not int and not (is_text(raw_id) and raw_id):
            raise InputError(f"{path}: item {item}: an asin or movie_id, if any, is due as text or whole number")
        item_ids[item - 1] = str(raw_id)
    first: dict[str, int] = {}
    for item, raw_id in enumerate(item_ids, 1):
        if first.setdefault(raw_id, item) < item:
            raise InputError(f"{path}: items {first[raw_id]} and {item} have one raw id, {raw_id!r}")
    return item_ids, titles
