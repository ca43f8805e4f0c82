"""Steps that are taken once: what each was made from is remembered, and only what changed is made anew."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from dmsrec_jax.cli import flag_of
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import locked, read_json, sha256, write_json


class Once:
    """The steps of one folder, to be entered as a context: only one process at a time may take them.

    ``steps/NAME.json`` holds a step's flags, the SHA-256 of its inputs and whether it came to its end.
    """

    def __init__(self, folder: Path, total: int, console: Console) -> None:
        """
        Args:
          folder: of all results; made if need be.
          total: how many steps there are, for the lines printed.
          console: printed to.
        """
        self.folder = folder
        self._total = total
        self._console = console
        self._number = 0

    def __enter__(self) -> "Once":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = locked(self.folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    def take(
        self,
        name: str,
        action: Callable[[], None],
        flags: Mapping[str, Any],
        inputs: Mapping[str, Path],
        result: Path,
        clear: Callable[[], None] | None = None,
    ) -> None:
        """Calls ``action``, unless it was called with the same flags and inputs before and its result is there.

        Args:
          name: of the step.
          action: makes the result.
          flags: what the result depends on beside its inputs; JSON values.
          inputs: by name, a file whose bytes say what is read.
          result: the file that ``action`` writes last.
          clear: for an action that goes on with what it finds: called before, unless that is of these flags and inputs.

        Raises:
          InputError: the action ended without its result.
        """
        self._number += 1
        file, known = _memory(self.folder, name), last_taken(self.folder, name)
        due = {"flags": dict(flags), "inputs": {key: sha256(path) for key, path in inputs.items()}}
        changes = _changes(known, due)
        if known.get("done") and not changes and result.is_file():
            self._say(name, f"skipped, made before from the same: {result}")
            return
        goes_on = bool(known) and not changes and not known["done"]
        why = ", ".join(changes) + " changed" if known and changes else "goes on" if goes_on else f"makes {result}"
        self._say(name, f"running, {why}")
        if clear and not goes_on:
            clear()
        write_json(file, due | {"done": False})
        started = time.perf_counter()
        action()
        if not result.is_file():
            raise InputError(f"{result}: not made by the step {name}")
        write_json(file, due | {"done": True})
        self._say(name, f"done in {time.perf_counter() - started:.0f} s")

    def command(self, module: str, flags: Mapping[str, Any], *words: object, python: Path | None = None) -> None:
        """See `command`; the process inherits the lock."""
        # Where this process alone is killed, nobody works on what the command still writes.
        command(module, flags, *words, python=python, pass_fds=[self._lock.fileno()])

    def _say(self, name: str, what: str) -> None:
        self._console.print(f"[{self._number}/{self._total}] {name}: {what}", soft_wrap=True)


def last_taken(folder: Path, name: str) -> dict[str, Any]:
    """What is remembered of a step; nothing where it was never taken."""
    file = _memory(folder, name)
    return read_json(file) if file.is_file() else {}


def _memory(folder: Path, name: str) -> Path:
    return folder / "steps" / f"{name}.json"


def command(
    module: str, flags: Mapping[str, Any], *words: object, python: Path | None = None, pass_fds: Sequence[int] = ()
) -> None:
    """``python -m MODULE WORDS FLAGS`` as a process, whose end frees the device; flags of None are left out.

    Args:
      module: to be run.
      flags: by the names of settings.
      words: further ones.
      python: another environment's.
      pass_fds: open files that the process inherits.

    Raises:
      SystemExit: it failed, with its exit code; it has said why.
    """
    argv = [str(python or sys.executable), "-m", module, *map(str, words)]
    argv += [f"{flag_of(key)}={value}" for key, value in flags.items() if value is not None]
    process = subprocess.Popen(argv, pass_fds=pass_fds)
    try:
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code < 0:
        raise InputError(f"python -m {module}: killed by signal {-code}; the same command goes on from there")
    if code:
        raise SystemExit(code)


def _changes(known: Mapping[str, Any], due: Mapping[str, Any]) -> list[str]:
    """Names of the flags and inputs that are not what they were."""
    return [
        flag_of(key) if kind == "flags" else key
        for kind in ("flags", "inputs")
        for key in sorted({*known.get(kind, {}), *due[kind]})
        if known.get(kind, {}).get(key) != due[kind].get(key)
    ]
