"""Delimited text files: their header, where their rows begin, and rows that hold too much."""

import csv
import itertools
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import polars as pl

from dmsrec_jax.errors import InputError

EXTRA = "\0"
"""Column that catches what a line holds beyond the header's fields."""
STRAY_QUOTE = "a quote that is not closed, or text beside it"
_BLOCK = 1 << 22
csv.field_size_limit(sys.maxsize)  # between two stray quotes a field can be most of the file


class Form(NamedTuple):
    """How a file is written."""

    separator: str = ","
    quotes: bool = True
    """Whether fields may be quoted; else a quote is a character like any other."""

    def reader(self, lines: Iterable[str], *, strict: bool = False) -> Any:  # its type has no name in the library
        """The csv module's reader."""
        if not self.quotes:
            return csv.reader(lines, delimiter=self.separator, quoting=csv.QUOTE_NONE)
        return csv.reader(lines, delimiter=self.separator, strict=strict)


class Layout(NamedTuple):
    """What polars does not tell of a file."""

    wide: np.ndarray
    """int [n], data rows (from 0) with more fields than the header; to polars an empty extra field is as none."""
    n_rows: int | None = None
    """Data rows, blank ones too, as the csv module counts them; None where it need not."""
    n_inner: int = 0
    """Lines that begin inside of quotes."""
    first_inner: int = 0
    """The number of the first of them, from 1."""


def form_of(separator: str, *, quotes: bool) -> Form:
    """The form that flags ask for.

    Raises:
      InputError: ``separator`` is neither a character nor `tab`.
    """
    mark = "\t" if separator == "tab" else separator
    if len(mark) != 1 or not mark.isascii() or mark in '"\r\n':
        raise InputError(f"--separator {separator!r}: must be one character, or `tab`")
    return Form(mark, quotes)


def check_regular(path: Path) -> None:
    """Refuses pipes and devices: files are read more than once.

    Raises:
      InputError: ``path`` is one.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{path}: not a regular file; it is read more than once")


def header(path: Path, form: Form) -> list[str]:
    """The names of the columns.

    Raises:
      InputError: the file cannot be read, its first line is no text or names nothing, or a name twice.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            line = file.readline(1 << 20)
        names: list[str] = next(form.reader([line.decode("utf-8-sig")]), [])
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        packed = ", but compressed: unpack it first" if line.startswith(b"\x1f\x8b") else ""
        raise InputError(f"{path}: line 1: not UTF-8 text{packed}") from None
    except csv.Error as error:
        raise InputError(f"{path}: line 1: {error}") from None
    if not names:
        raise InputError(f"{path}: line 1: a header with column names is due")
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise InputError(f"{path}: line 1: column {twice[:40]!r} appears twice")
    return names


def scan_text(path: Path, columns: list[str], form: Form, *, has_header: bool) -> pl.LazyFrame:
    """The file's ``columns``, and `EXTRA`; all are text, null where empty."""
    return pl.scan_csv(
        path,
        has_header=False,
        skip_rows=int(has_header),
        schema=dict.fromkeys([*columns, EXTRA], pl.String),
        separator=form.separator,
        quote_char='"' if form.quotes else None,
        encoding="utf8-lossy",
        missing_columns="insert",
        truncate_ragged_lines=True,
        glob=False,
    )


def layout(path: Path, n_fields: int, form: Form) -> Layout:
    """The layout of a file with a header of ``n_fields``."""
    wide, row, in_line = [np.zeros(0, np.int64)], -1, 0
    with path.open("rb") as blocks:
        for block in iter(partial(blocks.read, _BLOCK), b""):
            if form.quotes and b'"' in block:
                return _quoted_layout(path, n_fields, form)
            content = np.frombuffer(block, np.uint8)
            ends, separators = (np.flatnonzero(content == ord(mark)) for mark in ("\n", form.separator))
            before = np.append(-in_line, np.searchsorted(separators, ends))
            wide.append(row + np.flatnonzero(np.diff(before) >= n_fields))
            row, in_line = row + len(ends), len(separators) - int(before[-1])
    if in_line >= n_fields:
        wide.append(np.array([row]))
    return Layout(np.concatenate(wide))


def _quoted_layout(path: Path, n_fields: int, form: Form) -> Layout:
    wide, row, line, inner, first = [], -1, 0, 0, 0
    with _text(path) as file:
        reader = form.reader(file)
        for row, fields in enumerate(reader, -1):
            if len(fields) > n_fields:
                wide.append(row)
            if more := reader.line_num - line - 1:
                inner, first = inner + more, first or line + 2
            line = reader.line_num
    return Layout(np.array(wide, np.int64), row + 1, inner, first)


def line_of(path: Path, row: int, form: Form) -> int | None:
    """The line, from 1, in which data row ``row`` (from 0) begins; None where the file ends before."""
    with path.open("rb") as blocks:
        if not (form.quotes and any(b'"' in block for block in iter(partial(blocks.read, 1 << 20), b""))):
            return row + 2
    with _text(path) as file:  # quoted fields may hold line ends
        reader = form.reader(file)
        try:
            for _ in range(row + 1):  # the header and the rows before
                next(reader)
            return reader.line_num + 1
        except (csv.Error, StopIteration):
            return None


def stray_quote(path: Path, form: Form) -> int | None:
    """The line, from 1, of the first row in which a quote stands where none may; None if there is none."""
    if not form.quotes:
        return None
    with _text(path) as file:
        lines, again = itertools.tee(file)
        reader, line = form.reader(lines, strict=True), 1
        try:
            for _ in reader:
                # a quote inside of a field is text to this reader, but not to polars
                if sum(text.count('"') for text in itertools.islice(again, reader.line_num + 1 - line)) % 2:
                    return line
                line = reader.line_num + 1
        except csv.Error:
            return line
    return None


def _text(path: Path) -> TextIO:
    return path.open(encoding="utf-8", errors="replace", newline="")
