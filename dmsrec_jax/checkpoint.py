"""Orbax: the training state of a run that goes on, and the parameters of a run that is done."""

import contextlib
import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from dmsrec_jax.errors import InputError

# orbax reports every save, for which a progress bar has no room, and what it then raises as well, by pages.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_report_unraisable = sys.unraisablehook


def _report_news(problem: "sys.UnraisableHookArgs") -> None:
    """When one of orbax's reads fails, the others report to an event loop that is closed by then: that is no news."""
    if str(problem.exc_value) != "Event loop is closed":
        _report_unraisable(problem)


sys.unraisablehook = _report_news


def _brief(error: Exception) -> str:
    """orbax's messages run to pages; their first line tells."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def _saving(folder: Path) -> Iterator[None]:
    """orbax raises a ValueError where the system raises an OSError, as of a full disk."""
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        raise OSError(errno.EIO, os.strerror(int(code[1])) if code else _brief(error), str(folder)) from None


class Checkpoints:
    """The last states of a training run, one per epoch; a save that was cut off is never seen."""

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, epoch: int, state: Any, notes: dict[str, Any]) -> None:
        """Saves a pytree of arrays and a JSON dictionary as of the end of ``epoch``."""
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes))
        with _saving(Path(self._manager.directory)):
            self._manager.save(epoch, args=args)

    def notes(self) -> dict[str, Any] | None:
        """The notes of the last epoch saved alone, whatever its state looks like; None where nothing was saved."""
        epoch = self._manager.latest_step()
        if epoch is None:
            return None
        return self._restore(epoch, notes=ocp.args.JsonRestore()).notes

    def latest(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """The last epoch saved, its state in the form of ``like``, and its notes; None where nothing was saved."""
        epoch = self._manager.latest_step()
        if epoch is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        saved = self._restore(epoch, state=ocp.args.StandardRestore(abstract), notes=ocp.args.JsonRestore())
        return epoch, saved.state, saved.notes

    def _restore(self, epoch: int, **items: Any) -> Any:
        try:
            return self._manager.restore(epoch, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise InputError(f"{self._manager.directory}: not a checkpoint of this run: {_brief(error)}") from None

    def close(self) -> None:
        self._manager.close()


def save_arrays(folder: Path, tree: Any) -> None:
    """Saves a pytree of arrays, whole or not at all."""
    with _saving(folder), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), tree, force=True)


def load_arrays(folder: Path, like: Any) -> Any:
    """Restores what `save_arrays` wrote.

    Args:
      folder: the checkpoint.
      like: a pytree of the same structure, shapes and dtypes.

    Raises:
      InputError: the folder is missing or holds something else.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder.absolute(), abstract)
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise InputError(f"{folder}: damaged, or of another model: {_brief(error)}") from None
