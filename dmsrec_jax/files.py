"""Files that are whole or absent: staged writes, checked reads, hashes."""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from dmsrec_jax.errors import InputError

_OF_MODELS = {".json", ".jinja", ".txt", ".model", ".safetensors", ".bin", ".gguf"}
_BLOCKS, _BLOCK = 256, 1 << 16

_HOST = re.sub(r"\W", "-", platform.node())


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yields a temporary name in the folder of ``path``; on success it is renamed to ``path``, on failure removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    handle, name = tempfile.mkstemp(prefix=_prefix(path), dir=path.parent)
    os.close(handle)
    staged = Path(name)
    try:
        yield staged
        _sync(staged)
        staged.chmod(0o644)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def check_no_file(path: Path, flag: str = "") -> None:
    """Refuses a file where a folder is due, at ``path`` or above it; ``flag`` leads the message.

    Raises:
      InputError: there is one.
    """
    if file := next((at for at in (path, *path.parents) if at.exists() and not at.is_dir()), None):
        raise InputError(f"{flag}{file}: exists and is not a folder")


def check_replaceable(path: Path, *, marker: str, overwrite: bool, reads: Iterable[Path] = ()) -> None:
    """Refuses what `staged_folder` would, and what holds an input: for commands that work long before they write.

    Raises:
      InputError: one of ``reads`` lies in ``path``; ``path`` cannot be renamed; or it exists and is not empty, and
        ``overwrite`` is false or it lacks ``marker``, the file by which a folder of this kind is known.
    """
    if inside := next((read for read in reads if read.resolve().is_relative_to(path.resolve())), None):
        raise InputError(f"--out {path}: would replace {inside}, which is to be read")
    check_no_file(path)
    if path.is_dir() and (path.samefile(".") or path.is_mount()):
        where = "the working directory" if path.samefile(".") else "a mount point"
        raise InputError(f"--out {path}: is {where}, which cannot be replaced; name a folder in it")
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise InputError(f"{path}: exists already; give --overwrite to replace it")
        if not (path / marker).is_file():
            raise InputError(f"--overwrite {path}: has no {marker}, so it is something else; remove it yourself")


@contextlib.contextmanager
def staged_folder(path: Path, *, marker: str, overwrite: bool = False, reads: Iterable[Path] = ()) -> Iterator[Path]:
    """Yields a temporary folder beside ``path``; on success it becomes ``path``, on failure it is removed.

    Raises:
      InputError: see `check_replaceable`; before or after the work.
    """
    check_replaceable(path, marker=marker, overwrite=overwrite, reads=reads)
    if path.is_symlink():  # the link stays, what it points at is replaced
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    staged = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
    try:
        yield staged
        for file in staged.rglob("*"):
            if file.is_file():
                _sync(file)
        check_replaceable(path, marker=marker, overwrite=overwrite)  # another process may have been faster
        staged.chmod(0o755)
        if path.is_dir():
            retired = Path(tempfile.mkdtemp(prefix=f"{_prefix(path)}old.", dir=path.parent))
            path.replace(retired)
            staged.replace(path)
            shutil.rmtree(retired)
        else:
            staged.replace(path)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextlib.contextmanager
def staged_files(folder: Path, *, last: str) -> Iterator[Path]:
    """Yields a temporary folder; on success its files move into ``folder`` beside what is there, on failure it goes.

    The file ``last`` is taken away before the others move and comes after them, so it is there only with all of them.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder / "staged")
    staged = Path(tempfile.mkdtemp(prefix=_prefix(folder / "staged"), dir=folder))
    try:
        yield staged
        files = sorted(staged.iterdir(), key=lambda file: file.name == last)
        for file in files:
            _sync(file)
        (folder / last).unlink(missing_ok=True)
        for file in files:
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):  # not empty: it worked
                folder.rmdir()


def is_text(value: object) -> bool:
    """Whether ``value`` is text that a file can hold, without half a surrogate pair."""
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value


def locked(folder: Path) -> IO[bytes]:
    """Takes the folder's file ``lock``, held until what is returned is closed, here and in processes that inherit it.

    Raises:
      InputError: another process holds it.
    """
    return _flock(folder, "ab", fcntl.LOCK_EX)


def check_unlocked(folder: Path) -> None:
    """Refuses a folder, which may be missing or read-only, while another process holds its `locked` file.

    Raises:
      InputError: it does.
    """
    if (folder / "lock").is_file():
        _flock(folder, "rb", fcntl.LOCK_SH).close()  # over NFS an exclusive lock needs a file open for writing


def _flock(folder: Path, mode: str, kind: int) -> IO[bytes]:
    lock = (folder / "lock").open(mode)
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise InputError(f"{folder}: another process is at work there") from None
    return lock


def _prefix(path: Path) -> str:
    """How this process's temporary names for ``path`` begin."""
    return f".{path.name}.{_HOST}.{os.getpid()}."


def _remove_stale(path: Path) -> None:
    """Removes temporary names for ``path`` whose process was killed; those of other hosts may be in use."""
    name = re.compile(rf"\.{re.escape(path.name)}\.{_HOST}\.(\d+)\.(old\.)?\w{{8}}")
    for left in path.parent.iterdir():
        found = name.fullmatch(left.name)
        # A process killed between two renames leaves what it was to replace as "old" alone: that is kept.
        if not found or _is_alive(int(found[1])) or (found[2] and not path.exists()):
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, whole or not at all."""
    with staged_file(path) as staged:
        staged.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      InputError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None


def write_npy(path: Path, array: np.ndarray) -> None:
    """Writes one array as ``.npy``, whole or not at all."""
    with staged_file(path) as staged, staged.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def read_npy(path: Path, *, dtype: Any, ndim: int, mmap: bool = True) -> np.ndarray:
    """Reads a ``.npy`` file without pickle and checks its type (any, if None) and rank.

    Raises:
      InputError: the file is missing, truncated, foreign, holds objects, or has another dtype or rank.
    """
    try:
        array = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a plain .npy array: {error}") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: not a .npy file")
    expected = array.dtype if dtype is None else np.dtype(dtype)
    if array.dtype != expected or array.ndim != ndim:
        raise InputError(f"{path}: {array.dtype} of rank {array.ndim} where {expected} of rank {ndim} is due")
    return array


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
      InputError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    return digest.hexdigest()


def sampled_sha256(folder: Path) -> str:
    """SHA-256 over a model's files: small ones whole, of large ones the size and 256 blocks of 64 KiB spread over them.

    Seconds for weights whose bytes would take minutes; other files, and those of folders below, do not count.

    Raises:
      InputError: a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in sorted(folder.iterdir()):
            if path.suffix not in _OF_MODELS or not path.is_file():
                continue
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}\n".encode())
            with path.open("rb") as file:
                for start in range(0, size, max(_BLOCK, size // _BLOCKS)):
                    file.seek(start)
                    digest.update(file.read(_BLOCK))
    except OSError as error:
        raise InputError(f"{error.filename or folder}: {error.strerror or error}") from None
    return digest.hexdigest()
