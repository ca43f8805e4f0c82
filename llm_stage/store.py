"""Answers on disk: append-only, each batch durable before it counts, no finished row ever asked again.

    answers/
      identity.json     what the answers depend on; a run that differs in any of it is refused
      00000.jsonl …     one answer per line: {"row": 17, "picks": [4, 9], "text": "…", …}; a new file every 64 MiB
      index             one line per batch: file, first byte, bytes, rows, CRC-32 of the bytes, CRC-32 of the line
      lock              held (`flock`) by the one process that writes

A batch is appended and synced, then its index line is; rows without an index line do not exist. What a kill tore is cut
off when the folder is opened next.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from dmsrec_jax.errors import InputError
from dmsrec_jax.files import check_unlocked, locked, read_json, staged_files, write_json
from llm_stage.engines.base import Answer

FILE_BYTES = 1 << 26
"""A file that has this many bytes is not appended to."""


class _Batch(NamedTuple):
    """An index line."""

    file: int
    start: int
    size: int
    rows: int
    crc: int

    def line(self) -> bytes:
        words = f"{self.file} {self.start} {self.size} {self.rows} {self.crc:08x}"
        return f"{words} {zlib.crc32(words.encode()):08x}\n".encode()


class AnswerStore:
    """The answers of one run. Opening it locks the folder and cuts off what a kill tore.

    Raises:
      InputError: another process holds the folder, it belongs to a run of another identity, or it is damaged.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = locked(folder)
        try:
            _check_identity(folder, json.loads(json.dumps(identity)))
            self._batches, self._index_size = _recover(folder)
            self._rows = {row for row, _ in self}
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> "AnswerStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    def __contains__(self, row: object) -> bool:
        return row in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[int, Answer]]:
        """All finished rows and their answers, in the order they were given."""
        for batch in self._batches:
            yield from _parse(_read(self.folder, batch))

    def append(self, rows: Sequence[int], answers: Sequence[Answer]) -> None:
        """Adds a batch; when this returns, it outlives a kill and a power cut.

        Raises:
          InputError: it cannot be written (no room); earlier batches are safe.
          ValueError: a row is finished already.
        """
        if again := self._rows.intersection(rows):
            raise ValueError(f"row {min(again)} is answered already")
        lines = ({"row": row} | answer._asdict() for row, answer in zip(rows, answers, strict=True))
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        data = text.encode("utf-8", "replace")  # a model may write half a surrogate pair
        last = self._batches[-1] if self._batches else _Batch(0, 0, 0, 0, 0)
        file, start = (last.file, last.start + last.size) if last.start + last.size < FILE_BYTES else (last.file + 1, 0)
        batch = _Batch(file, start, len(data), len(rows), zlib.crc32(data))
        _write_at(self.folder / _name(file), start, data)
        _write_at(self.folder / "index", self._index_size, batch.line())
        self._index_size += len(batch.line())
        self._batches.append(batch)
        self._rows.update(rows)


def read_answers(folder: Path) -> tuple[dict[str, Any], Iterator[tuple[int, Answer]]]:
    """The identity and the finished rows of a folder that nobody writes to, such as one on a read-only disk.

    Raises:
      InputError: it is no folder of answers, another process holds it, or it is damaged.
    """
    identity = read_object(folder / "identity.json")
    check_unlocked(folder)
    batches, _ = _whole_batches(folder)
    return identity, (pair for batch in batches for pair in _parse(_read(folder, batch)))


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
      InputError: the file is missing, unreadable or holds something else.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path}: a JSON object is due")
    return found


def _name(file: int) -> str:
    return f"{file:05d}.jsonl"


def _check_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Of a folder without any answer, whatever it was begun with, ``identity`` becomes the identity."""
    path, index = folder / "identity.json", folder / "index"
    if not (index.exists() and index.stat().st_size):
        with staged_files(folder, last=path.name) as staged:
            write_json(staged / path.name, identity)
        _sync_folder(folder)
    elif not path.exists():
        raise InputError(f"{path}: missing, so nobody knows what the answers beside it are of")
    if differences := differing(read_json(path), identity):
        key, there, here = differences[0]
        raise InputError(f"{folder}: begun with {key} {there}, not {here}; give another --out")


def differing(there: Any, here: Any, key: str = "") -> list[tuple[str, str, str]]:
    """Dotted keys in which two JSON values differ, with both values as JSON."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = dict.fromkeys([*there, *here])
        return [d for k in keys for d in differing(there.get(k), here.get(k), f"{key}.{k}".lstrip("."))]
    return [] if there == here else [(key or "identity", json.dumps(there), json.dumps(here))]


def _recover(folder: Path) -> tuple[list[_Batch], int]:
    """`_whole_batches`, after cutting off what comes behind them."""
    batches, size = _whole_batches(folder)
    index = folder / "index"
    if index.exists() and index.stat().st_size > size:
        _write_at(index, size, b"")
    ends = {batch.file: batch.start + batch.size for batch in batches}
    for path in folder.glob("[0-9]" * 5 + ".jsonl"):
        end = ends.get(int(path.stem), 0)
        if path.stat().st_size > end:
            _write_at(path, end, b"")
    return batches, size


def _whole_batches(folder: Path) -> tuple[list[_Batch], int]:
    """The batches of the index, and the bytes of their lines. A torn last one is left out; another one is an error."""
    index = folder / "index"
    text = index.read_bytes() if index.exists() else b""
    lines = text.splitlines(keepends=True)
    batches: list[_Batch] = []
    size = 0
    for place, line in enumerate(lines):
        batch = _entry(line)
        if batch is None or zlib.crc32(_read(folder, batch)) != batch.crc:
            if place < len(lines) - 1:  # no kill does that
                raise InputError(f"{index}: line {place + 1} or the answers it is of are damaged")
            break
        batches.append(batch)
        size += len(line)
    return batches, size


def _entry(line: bytes) -> _Batch | None:
    try:
        file, start, size, rows, crc, _ = line.decode().split()
        batch = _Batch(int(file), int(start), int(size), int(rows), int(crc, 16))
    except ValueError:
        return None
    return batch if batch.line() == line else None


def _read(folder: Path, batch: _Batch) -> bytes:
    try:
        with (folder / _name(batch.file)).open("rb") as file:
            file.seek(batch.start)
            return file.read(batch.size)
    except FileNotFoundError:
        return b""


def _parse(data: bytes) -> Iterator[tuple[int, Answer]]:
    for line in data.splitlines():
        fields = json.loads(line)
        row = fields.pop("row")
        yield row, Answer(**fields | {"picks": tuple(fields["picks"])})


def _write_at(path: Path, start: int, data: bytes) -> None:
    """Makes the file end with ``data`` from byte ``start`` on, durably."""
    new = not path.exists()
    try:
        with path.open("wb" if new else "r+b") as file:
            file.truncate(start)
            file.seek(start)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if new:
            _sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
