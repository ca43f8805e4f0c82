"""Click logs in CSV or Parquet, scanned lazily: one row per click with a session, an item and a time."""

import csv
import itertools
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from rich.progress import Progress

from dmsrec_jax.data.bad_rows import BadRows
from dmsrec_jax.data.clicks import Clicks, build
from dmsrec_jax.data.config import PrepareCsv, PrepareLog
from dmsrec_jax.data.write import Prepared, is_text
from dmsrec_jax.errors import InputError

_EXTRA = "\0"
"""Column that catches what a line holds beyond the header's fields."""
_BATCH = 500_000
_BLOCK = 1 << 22
_REASONS = {
    1: "more fields than the header has",
    2: "no session",
    3: "no item",
    4: "an id that is not UTF-8 text",
    5: "no time that is a number (seconds or milliseconds) or ISO 8601",
    6: "a time out of range: seconds below 1e11 or milliseconds below 1e14 are due",
}
_QUOTE = "a quote that is not closed, or text beside it"
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
    bad = BadRows(config.raw, skip=config.skip_bad_rows, place=partial(_place, config))
    try:
        clicks, items = _read_clicks(config, bad)
    except OSError as error:
        raise InputError(f"{config.raw}: {error.strerror or error}") from None
    except pl.exceptions.PolarsError as error:
        raise _unreadable(config, error) from None

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
    notes = bad.notes() + notes + prepared.notes
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


def _read_clicks(config: PrepareLog, bad: BadRows) -> tuple[Clicks, pl.Series]:
    """All good clicks in the order (session, time), and the distinct items, which keep the codes of `Clicks.item`."""
    log = _scan(config)
    columns = log.collect_schema()
    for flag, name in (("session", config.session_col), ("item", config.item_col), ("time", config.time_col)):
        if name not in columns:
            raise InputError(f"{config.raw}: no column {name!r} (--{flag}-col); {_listed(columns)}")
    session, item = (_id(name, columns[name]) for name in (config.session_col, config.item_col))
    time, too_far = _microseconds(log, config.time_col, columns[config.time_col])
    extra = pl.col("row").is_in(_wide_rows(config, len(columns) - 1).implode()) if _EXTRA in columns else pl.lit(False)
    no_text = session.str.contains("\ufffd", literal=True) | item.str.contains("\ufffd", literal=True)
    reason = pl.when(extra).then(1).when(_empty(session)).then(2).when(_empty(item)).then(3)
    query = (
        log.with_row_index("row")
        .filter(extra | ~pl.all_horizontal(pl.col(list(columns)).is_null()))
        .select(
            "row",
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
        task = progress.add_task(f"reading {config.raw.name}", total=log.select(pl.len()).collect().item())
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
    return _without_duplicates(clicks, bad), table["item"].unique()


def _scan(config: PrepareLog) -> pl.LazyFrame:
    """The log, every CSV field as text and null where empty."""
    if not isinstance(config, PrepareCsv):
        config.raw.open("rb").close()  # what it says of a folder is better than what polars does
        return pl.scan_parquet(config.raw, glob=False)
    separator = _separator(config.separator)
    return scan_text(config.raw, _header(config.raw, separator), separator, header=True)


def scan_text(path: Path, columns: list[str], separator: str, *, header: bool, quote: str | None = '"') -> pl.LazyFrame:
    """A delimited text file with ``columns``, and one more for excess fields; all are text, null where empty."""
    return pl.scan_csv(
        path,
        has_header=False,
        skip_rows=int(header),
        schema=dict.fromkeys([*columns, _EXTRA], pl.String),
        separator=separator,
        quote_char=quote,
        encoding="utf8-lossy",
        missing_columns="insert",
        truncate_ragged_lines=True,
        glob=False,
    )


def _wide_rows(config: PrepareLog, n_fields: int) -> pl.Series:
    """Data rows (from 0) of a CSV with more than ``n_fields`` fields; to polars an empty extra field is as none."""
    separator = _separator(getattr(config, "separator", ","))
    wide, row, in_line = [np.zeros(0, np.int64)], -1, 0
    with config.raw.open("rb") as blocks:
        for block in iter(partial(blocks.read, _BLOCK), b""):
            if b'"' in block:
                return pl.Series(_wide_quoted_rows(config.raw, separator, n_fields), dtype=pl.UInt32)
            content = np.frombuffer(block, np.uint8)
            ends, separators = (np.flatnonzero(content == ord(mark)) for mark in ("\n", separator))
            before = np.append(-in_line, np.searchsorted(separators, ends))
            wide.append(row + np.flatnonzero(np.diff(before) >= n_fields))
            row, in_line = row + len(ends), len(separators) - int(before[-1])
    if in_line >= n_fields:
        wide.append(np.array([row]))
    return pl.Series(np.concatenate(wide), dtype=pl.UInt32)


def _wide_quoted_rows(path: Path, separator: str, n_fields: int) -> list[int]:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        try:
            return [
                row for row, fields in enumerate(csv.reader(file, delimiter=separator), -1) if len(fields) > n_fields
            ]
        except csv.Error:  # what polars then says is better
            return []


def _separator(flag: str) -> str:
    separator = "\t" if flag == "tab" else flag
    if len(separator) != 1 or not separator.isascii() or separator in '"\r\n':
        raise InputError(f"--separator {flag!r}: must be one character, or `tab`")
    return separator


def _header(path: Path, separator: str) -> list[str]:
    try:
        with path.open("rb") as file:
            line = file.readline(1 << 20).decode("utf-8-sig")
        names = next(csv.reader([line], delimiter=separator), [])
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: line 1: not UTF-8 text") from None
    except csv.Error as error:
        raise InputError(f"{path}: line 1: {error}") from None
    if not names:
        raise InputError(f"{path}: line 1: a header with column names is due")
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise InputError(f"{path}: line 1: column {twice[:40]!r} appears twice")
    return names


def _id(name: str, dtype: pl.DataType) -> pl.Expr:
    """A column of ids as text without outer white space, null where it is no number."""
    column = pl.col(name).fill_nan(None) if dtype.is_float() else pl.col(name)
    return column.cast(pl.String).str.strip_chars()


def _empty(text: pl.Expr) -> pl.Expr:
    return text.is_null() | (text == "")


def _microseconds(log: pl.LazyFrame, name: str, dtype: pl.DataType) -> tuple[pl.Expr, pl.Expr]:
    """The time column as int64 microseconds since 1970, null where it cannot be read; and where it is out of range.

    Text is a number or ISO 8601, whichever most of the first rows are. A number below 1e11 is in seconds (to the year
    5138), one below 1e14 in milliseconds (from 1973).
    """
    column = pl.col(name)
    if dtype in (pl.Categorical, pl.Enum, pl.Binary):  # text, as some programs keep it
        column, dtype = column.cast(pl.String), pl.String()
    if dtype == pl.Date or dtype == pl.Datetime:
        column = column.cast(pl.Datetime("us")) if dtype == pl.Date else column
        return column.dt.epoch("us"), pl.lit(False)
    text = column.cast(pl.String).str.strip_chars()
    number = text.cast(pl.Float64, strict=False) if dtype == pl.String else column.cast(pl.Float64)
    if dtype == pl.String:
        start = log.select(number=number.is_not_null(), text=text.is_not_null()).head(1000).sum().collect()
        if 2 * start["number"].item() < start["text"].item():
            return _iso(text), pl.lit(False)
    size = number.abs()
    scale = pl.when(size < 1e11).then(1e6).when(size < 1e14).then(1e3)
    return (number * scale).round().cast(pl.Int64), number.is_finite() & scale.is_null()


def _iso(text: pl.Expr) -> pl.Expr:
    text = text.str.replace("T", " ", literal=True).str.replace(r"\s*(Z|UTC)$", "+00:00")
    formats = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M")
    times = [text.str.to_datetime(form, strict=False, time_unit="us").dt.epoch("us") for form in formats]
    return pl.coalesce(*times, text.str.to_date("%Y-%m-%d", strict=False).dt.epoch("us"))


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


def _place(config: PrepareLog, row: int) -> str:
    """Where an editor shows data row ``row`` (from 0)."""
    if not isinstance(config, PrepareCsv):
        return f"row {row + 1}"
    with config.raw.open("rb") as blocks:
        if not any(b'"' in block for block in iter(partial(blocks.read, 1 << 20), b"")):
            return f"line {row + 2}"
    with config.raw.open(encoding="utf-8", errors="replace", newline="") as file:  # quoted fields may hold line ends
        reader = csv.reader(file, delimiter=_separator(config.separator))
        try:
            for _ in range(row + 1):  # the header and the rows before
                next(reader)
            return f"line {reader.line_num + 1}"
        except (csv.Error, StopIteration):
            return f"row {row + 1}"


def _unreadable(config: PrepareLog, error: Exception) -> InputError:
    """The error of a file that the parser gives up on, with the line where there is one."""
    if isinstance(config, PrepareCsv):
        with config.raw.open(encoding="utf-8", errors="replace", newline="") as file:
            lines, again = itertools.tee(file)
            reader, line = csv.reader(lines, delimiter=_separator(config.separator), strict=True), 1
            try:
                for _ in reader:
                    # a quote inside of a field is text to this reader, but not to polars
                    if sum(text.count('"') for text in itertools.islice(again, reader.line_num + 1 - line)) % 2:
                        raise csv.Error
                    line = reader.line_num + 1
            except csv.Error:
                return InputError(f"{config.raw}: line {line}: {_QUOTE}")
    return InputError(f"{config.raw}: not readable as a click log: {str(error).splitlines()[0]}")


def _listed(columns: Iterable[str]) -> str:
    """What columns there are, for an error: the first ones, each cut short."""
    return "it has " + ", ".join(repr(name[:40]) for name in itertools.islice(columns, 20) if name != _EXTRA)


def _read_titles(config: PrepareLog, path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """The title of each item that has one in ``path``, the first where it has several; and notes of bad rows."""
    columns = _header(path, ",")
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
            raise InputError(f"{path}: line {line}: {_QUOTE}: {error}") from None
    return titles, bad.notes()
