"""Writing a dataset folder, and the row of the paper's Table 1 that describes it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from dmsrec_jax.data.dataset import SCHEMA_VERSION, SessionDataset, Sessions, Split
from dmsrec_jax.data.samples import cut_rows, longest, ragged
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import sha256, staged_folder, write_json, write_npy

TITLE = 1000
"""Most characters of a title: an array of titles takes the longest one's width for every item."""


@dataclass(frozen=True)
class Prepared:
    """What a source yields: arrays as in `SessionDataset`, and what the reader of the command should know."""

    train: Split
    test: Split
    sessions: Sessions
    item_ids: list[str]
    """Raw ids of items 1 to n_items."""
    titles: list[str] | None = None
    """Titles of items 1 to n_items, "" where there is none."""
    notes: tuple[str, ...] = ()
    """Lines to print and to keep in ``meta.json``."""
    inputs: tuple[Path, ...] = ()
    """The raw files; ``meta.json`` keeps their SHA-256."""
    clicks: int | None = None
    """Clicks of all sessions, where the rows no longer hold them."""

    def n_clicks(self) -> int:
        """Clicks of all training and test sessions."""
        return self.clicks or len(self.sessions.items) + len(longest(self.test).items)


def shorten_titles(prepared: Prepared) -> Prepared:
    """``prepared`` with no title above `TITLE` characters, and a note of those cut."""
    long = sum(len(title) > TITLE for title in prepared.titles or ())
    if not long:
        return prepared
    titles = [title[:TITLE] for title in prepared.titles or ()]
    return replace(prepared, titles=titles, notes=(*prepared.notes, f"{long:,} titles cut to {TITLE:,} characters"))


def keep_last(prepared: Prepared, most: int) -> Prepared:
    """``prepared`` with rows of at most ``most`` clicks, the last ones, and a note of those cut."""
    (train, n_train), (test, n_test) = (cut_rows(rows, most) for rows in (prepared.train, prepared.test))
    note = f"rows cut to their last {most:,} clicks: {n_train:,} training, {n_test:,} test"
    return replace(prepared, train=train, test=test, notes=(*prepared.notes, note), clicks=prepared.n_clicks())


def write_dataset(
    prepared: Prepared, out: Path, *, name: str, provenance: dict[str, Any], overwrite: bool = False
) -> SessionDataset:
    """Writes a dataset folder, whole or not at all, and opens it.

    Args:
      prepared: the arrays; training rows are stored in the order of their chains.
      out: the folder to make.
      name: the data set's name.
      provenance: where it came from, kept in ``meta.json``.
      overwrite: replace a folder that is there.

    Raises:
      InputError: there is nothing to train or to test on, or ``out`` exists or cannot be made.
    """
    train = _by_chain(prepared.train)
    for split, what in ((train, "training"), (prepared.test, "test")):
        if not len(split):
            raise InputError(f"{out}: nothing to write, no {what} session of two clicks or more is left")
    with staged_folder(out, marker="sessions_items.npy", overwrite=overwrite) as folder:
        for what, split in (("train", train), ("test", prepared.test)):
            _write_csr(folder, what, split)
            write_npy(folder / f"{what}_targets.npy", split.targets.astype(np.int32, copy=False))
            write_npy(folder / f"{what}_chains.npy", split.chains.astype(np.int32, copy=False))
        _write_csr(folder, "sessions", prepared.sessions)
        write_json(folder / "item_ids.json", ["", *prepared.item_ids])
        if prepared.titles is not None:
            write_json(folder / "titles.json", ["", *prepared.titles])
        meta = {
            "schema_version": SCHEMA_VERSION,
            "name": name,
            "counts": _counts(train, prepared),
            "provenance": provenance | {"inputs": {file.name: sha256(file) for file in prepared.inputs}},
            "notes": list(prepared.notes),
            "files": {file.name: sha256(file) for file in sorted(folder.iterdir())},
        }
        write_json(folder / "meta.json", meta)
    return SessionDataset.load(out)


def _counts(train: Split, prepared: Prepared) -> dict[str, int]:
    test = prepared.test
    return {
        "items": len(prepared.item_ids),
        "train_rows": len(train),
        "test_rows": len(test),
        "train_sessions": len(prepared.sessions),
        "test_sessions": int(test.chains[-1]) + 1,
        "clicks": prepared.n_clicks(),
    }


def _write_csr(folder: Path, what: str, sessions: Sessions) -> None:
    write_npy(folder / f"{what}_items.npy", sessions.items.astype(np.int32, copy=False))
    write_npy(folder / f"{what}_offsets.npy", sessions.offsets.astype(np.int64, copy=False))


def _by_chain(split: Split) -> Split:
    """``split`` with its rows in the order of their chains, otherwise unchanged."""
    if (np.diff(split.chains) >= 0).all():
        return split
    order = np.argsort(split.chains, kind="stable")
    clicks = ragged(split.items, split.offsets[order], split.lengths[order])
    return Split(*clicks, split.targets[order], split.chains[order])


def table1(dataset: SessionDataset) -> Table:
    """The data set as a row of the paper's Table 1; its average length is that of the input rows, as in the paper."""
    counts = dataset.meta["counts"]
    clicks = len(dataset.train.items) + len(dataset.test.items)
    rows = len(dataset.train) + len(dataset.test)
    table = Table("Dataset", title="Table 1")
    for heading in ("#Train", "#Test", "#Clicks", "#Items", "Avg. len"):
        table.add_column(heading, justify="right")
    numbers = (counts[key] for key in ("train_rows", "test_rows", "clicks", "items"))
    table.add_row(dataset.name, *(f"{n:,}" for n in numbers), f"{clicks / rows:.2f}")
    return table
