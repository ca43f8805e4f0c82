"""Click logs in CSV or Parquet, scanned lazily: one row per click with a session, an item and a time."""

import csv
import itertools
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from rich.markup import escape
from rich.progress import Progress

from dmsrec_jax.data.bad_rows import BadRows
from dmsrec_jax.data.clicks import Clicks, build
from dmsrec_jax.data.config import PrepareCsv, PrepareLog
from dmsrec_jax.data.delimited import (
    EXTRA,
    STRAY_QUOTE,
    Form,
    check_regular,
    form_of,
    header,
    layout,
    line_of,
    scan_text,
    stray_quote,
)
from dmsrec_jax.data.times import microseconds
from dmsrec_jax.data.write import Prepared
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import is_text

_ROW = "\0row"
"""Column of row numbers from 0, a name that no log has."""
_BATCH = 500_000
_REASONS = {
    1: "more fields than the header has",
    2: "no session",
    3: "no item",
    4: "an id that is not UTF-8 text",
    5: "no time that is a number (seconds or milliseconds) or ISO 8601",
    6: "a time out of range: seconds below 1e11 or milliseconds below 1e14 are due",
}
_NO_QUOTES = "--no-quotes if a quote is a character like any other"
_DUPLICATE = "the session has an earlier row of the same time"


def read_log(config: PrepareLog) -> Prepared:
    """Reads a click log and makes samples as `clicks.build` says.

    The log is scanned in batches, of which only codes, times and row numbers are kept: memory grows by some 100 bytes
    per click and with the distinct ids, not with the file. Blank lines are passed over.

    Raises:
      InputError: a file is missing or foreign, a column is missing, a row is bad (and ``skip_bad_rows`` false), a
        flag is out of range, or nothing is left.
    """
    _check_flags(config)
    titles, notes = ({}, ()) if config.titles is None else _read_titles(config, config.titles)
    written = form_of(config.separator, quotes=config.quotes) if isinstance(config, PrepareCsv) else None
    bad = BadRows(config.raw, skip=config.skip_bad_rows, place=partial(_place, config.raw, written))
    try:
        clicks, items, more = _read_clicks(config, written, bad)
    except OSError as error:
        raise InputError(f"{config.raw}: {error.strerror or error}") from None
    except pl.exceptions.PolarsError as error:
        raise _unreadable(config.raw, written, str(error).splitlines()[0]) from None

    def names(codes: np.ndarray) -> list[str]:
        return pl.Series(codes, dtype=pl.UInt32).cat.to(items.dtype).cast(pl.String).to_list()

    prepared = build(
        clicks,
        names,
        source=str(config.raw),
        min_item_count=config.min_item_count,
        min_session_len=config.min_session_len,
        test_fraction=config.test_fraction,
        test_days=config.test_days,
        augment_prefixes=config.augment_prefixes,
    )
    notes = bad.notes() + notes + more + prepared.notes
    if config.titles is None:
        return replace(prepared, notes=notes, inputs=(config.raw,))
    found = [titles.get(item, "") for item in prepared.item_ids]
    if not any(found):
        raise InputError(f"{config.titles}: has a title for none of the {len(found)} items")
    notes += (f"{found.count(''):,} of {len(found):,} items have no title",)
    return replace(prepared, titles=found, notes=notes, inputs=(config.raw, config.titles))


def _check_flags(config: PrepareLog) -> None:
    if config.test_fraction is not None and config.test_days is not None:
        raise InputError("--test-fraction and --test-days: give one of them")
    if config.test_fraction is not None and not 0 < config.test_fraction < 1:
        raise InputError(f"--test-fraction {config.test_fraction}: must be between 0 and 1")
    if config.test_days is not None and not 0 < config.test_days < 100_000:
        raise InputError(f"--test-days {config.test_days}: must be above 0")
    for flag, value in (("--min-item-count", config.min_item_count), ("--min-session-len", config.min_session_len)):
        if value < 1:
            raise InputError(f"{flag} {value}: must be 1 or more")


def _read_clicks(config: PrepareLog, written: Form | None, bad: BadRows) -> tuple[Clicks, pl.Series, tuple[str, ...]]:
    """All good clicks in the order (session, time); distinct items, which keep the codes of `Clicks.item`; notes."""
    log = _scan(config.raw, written)
    columns = log.collect_schema()
    for flag, name in (("session", config.session_col), ("item", config.item_col), ("time", config.time_col)):
        if name not in columns:
            raise InputError(f"{config.raw}: no column {name!r} (--{flag}-col); {_listed(columns)}")
    session, item = (_id(name, columns[name]) for name in (config.session_col, config.item_col))
    if (kind := columns[config.time_col]) in (pl.Time, pl.Duration):
        raise InputError(f"{config.raw}: column {config.time_col!r} (--time-col) holds {kind}s: a point in time is due")
    time, too_far = microseconds(log, config.time_col, kind)
    n_rows = log.select(pl.len()).collect().item()
    extra = pl.lit(False)
    notes: tuple[str, ...] = ()
    if written is not None:
        lines = layout(config.raw, len(columns) - 1, written)
        if lines.n_rows not in (None, n_rows):  # two readers disagree about a quote
            raise _unreadable(config.raw, written, f"{n_rows} or {lines.n_rows} rows, by how its quotes are read")
        extra = pl.col(_ROW).is_in(pl.Series(lines.wide, dtype=pl.UInt32).implode())
        if lines.n_inner:
            notes = (
                f"{config.raw.name}: {lines.n_inner:,} lines begin inside of quotes, the first is line "
                f"{lines.first_inner}; {_NO_QUOTES}",
            )
    no_text = session.str.contains("\ufffd", literal=True) | item.str.contains("\ufffd", literal=True)
    reason = pl.when(extra).then(1).when(_empty(session)).then(2).when(_empty(item)).then(3)
    query = (
        log.with_row_index(_ROW)
        .filter(extra | ~pl.all_horizontal(pl.col(list(columns)).is_null()))
        .select(
            pl.col(_ROW).alias("row"),
            session.cast(pl.Categorical(pl.Categories.random())).alias("session"),
            item.cast(pl.Categorical(pl.Categories.random())).alias("item"),
            time.alias("time"),
            reason.when(no_text)
            .then(4)
            .when(too_far)
            .then(6)
            .when(time.is_null())
            .then(5)
            .otherwise(0)
            .cast(pl.UInt8)
            .alias("reason"),
        )
    )
    batches: list[pl.DataFrame] = []  # of categoricals: codes hold only as long as some column of their kind lives
    with Progress(transient=True) as progress:
        task = progress.add_task(escape(f"reading {config.raw.name}"), total=n_rows)
        for batch in query.collect_batches(chunk_size=_BATCH, maintain_order=True, engine="streaming"):
            progress.advance(task, len(batch))
            good = batch.filter(pl.col("reason") == 0)
            if len(good) < len(batch):
                _count(batch.filter(pl.col("reason") > 0), bad)
            batches.append(good.drop("reason"))
    if not any(len(batch) for batch in batches):
        raise InputError(f"{config.raw}: no click in it")
    table = pl.concat(batches, rechunk=False)
    del batches, batch, good
    clicks = Clicks(*(table[name].to_physical().to_numpy() for name in ("session", "item", "time", "row")))
    clicks = clicks[np.lexsort((clicks.time, clicks.session))]
    first, last = (np.datetime64(int(time), "us").astype("M8[s]") for time in (clicks.time.min(), clicks.time.max()))
    return _without_duplicates(clicks, bad), table["item"].unique(), (*notes, f"clicks of {first} to {last} UTC")


def _scan(raw: Path, written: Form | None) -> pl.LazyFrame:
    """The log, every CSV field as text and null where empty."""
    if written is None:
        check_regular(raw)
        raw.open("rb").close()  # what it says of a folder is better than what polars does
        return pl.scan_parquet(raw, glob=False)
    return scan_text(raw, header(raw, written), written, has_header=True)


def _id(name: str, dtype: pl.DataType) -> pl.Expr:
    """A column of ids as text without outer white space, null where it is no number."""
    column = pl.col(name)
    if dtype.is_float():  # so do integers come that once had a gap: 7.0 is the 7 of other files
        column = column.fill_nan(None)
        whole = column.cast(pl.Int64, strict=False)
        return pl.when(column == whole).then(whole.cast(pl.String)).otherwise(column.cast(pl.String))
    return column.cast(pl.String).str.strip_chars()


def _empty(text: pl.Expr) -> pl.Expr:
    return text.is_null() | (text == "")


def _count(rows: pl.DataFrame, bad: BadRows) -> None:
    for reason, count, row in rows.group_by("reason").agg(pl.len(), pl.min("row")).sort("row").rows():
        bad.add(row, _REASONS[reason], count)


def _without_duplicates(clicks: Clicks, bad: BadRows) -> Clicks:
    """Keeps the first row, in file order, of each session and time."""
    again = np.zeros(len(clicks.row), bool)
    again[1:] = (clicks.session[1:] == clicks.session[:-1]) & (clicks.time[1:] == clicks.time[:-1])
    if not again.any():
        return clicks
    rows = clicks.row[again]
    bad.add(int(rows.min()), _DUPLICATE, len(rows))
    return clicks[~again]


def _place(raw: Path, written: Form | None, row: int) -> str:
    """Where an editor shows data row ``row`` (from 0)."""
    line = None if written is None else line_of(raw, row, written)
    return f"row {row + 1}" if line is None else f"line {line}"


def _unreadable(raw: Path, written: Form | None, why: str) -> InputError:
    """The error of a file that the parser gives up on, with the line where there is one."""
    line = None if written is None else stray_quote(raw, written)
    if line is not None:
        return InputError(f"{raw}: line {line}: {STRAY_QUOTE}; {_NO_QUOTES}")
    return InputError(f"{raw}: not readable as a click log: {why}")


def _listed(columns: Iterable[str]) -> str:
    """What columns there are, for an error: the first ones, each cut short."""
    return "it has " + ", ".join(repr(name[:40]) for name in itertools.islice(columns, 20) if name != EXTRA)


def _read_titles(config: PrepareLog, path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """The title of each item that has one in ``path``, the first where it has several; and notes of bad rows."""
    columns = header(path, Form())
    for name in (config.item_col, "title"):
        if name not in columns:
            raise InputError(f"{path}: no column {name!r}; {_listed(columns)}")
    places = [columns.index(name) for name in (config.item_col, "title")]
    bad = BadRows(path, skip=config.skip_bad_rows)
    titles: dict[str, str] = {}
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader, line = csv.reader(file, strict=True), 1
        try:
            for fields in reader:
                item, title = (fields[i].strip() if i < len(fields) else "" for i in places)
                if len(fields) > len(columns):
                    bad.add(line, _REASONS[1])
                elif not is_text(item + title):
                    bad.add(line, "not UTF-8 text")
                elif line > 1 and title:
                    titles.setdefault(item, title)
                line = reader.line_num + 1
        except csv.Error as error:
            raise InputError(f"{path}: line {line}: {STRAY_QUOTE}: {error}") from None
    return titles, bad.notes()
