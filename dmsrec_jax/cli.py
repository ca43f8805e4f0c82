"""From the command line to one function call: flags, config files, one-line errors, exit codes."""

import contextlib
import dataclasses
import io
import itertools
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_type_hints

import tyro
import yaml

from dmsrec_jax.errors import InputError
from dmsrec_jax.files import is_text

C = TypeVar("C")

MEMORY_FLAGS = ("batch_size", "d", "n_neighbors", "device_data_mb", "members_at_once")
"""Settings that decide how much memory a command takes."""


class Terminated(BaseException):
    """SIGTERM, as `KeyboardInterrupt` is SIGINT: whatever is half-written gets cleaned up on the way out."""


def run(
    command: Callable[[Any], None],
    config: type | Mapping[str, type],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    positional: bool = False,
) -> None:
    """Parses ``argv`` into ``config`` and calls ``command``; exits 2 with one line on bad input or lack of memory.

    Args:
      command: called with the parsed dataclass.
      config: the command's dataclass, or subcommand names and theirs.
      argv: arguments without the program name; the process's own by default.
      prog: the name printed in help and errors, such as ``python -m dmsrec_jax.train``.
      positional: what has no default is given as bare words instead of flags.
    """
    name = prog.rsplit(".", 1)[-1]
    try:
        words = sys.argv[1:] if argv is None else list(argv)
        if foreign := next((word for word in words if not is_text(word)), None):
            raise InputError(f"{foreign!a}: is not UTF-8")
        with _sigterm_raises():
            command(parse(config, words, prog=prog, positional=positional))
    except InputError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:  # no room, no permission, a file where a folder is due
        print(f"{name}: error: {error.filename or name}: {error.strerror or error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Terminated:
        print(f"{name}: terminated", file=sys.stderr)
        raise SystemExit(143) from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"{name}: error: out of memory{_to_lower(config)}", file=sys.stderr)
        raise SystemExit(2) from None


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    def terminate(*_: object) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_out_of_memory(error: Exception) -> bool:
    """numpy's and Python's, or (by name: neither jax nor torch is imported here) jax's and torch's."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and "RESOURCE_EXHAUSTED" in str(error))
    )


def _to_lower(config: type | Mapping[str, type]) -> str:
    fields = () if isinstance(config, Mapping) else dataclasses.fields(config)
    flags = [flag_of(field.name) for field in fields if field.name in MEMORY_FLAGS]
    return f"; lower {', '.join(flags)}" if flags else ""


def parse(config: type | Mapping[str, type], argv: list[str], *, prog: str, positional: bool = False) -> Any:
    """Flags to dataclass. An optional field ``config`` makes ``--config FILE`` supply defaults that flags override.

    Raises:
      InputError: unknown or missing flags, bad values, an unreadable config file or unknown keys in it.
    """
    if isinstance(config, Mapping):
        branches = tuple(Annotated[c, tyro.conf.subcommand(name=name)] for name, c in config.items())
        target: Any = Union[branches]  # noqa: UP007 - built from a tuple
        defaults: dict[str, Any] = {}
    else:
        target = config
        defaults = _defaults_from_file(config, argv)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(
                target,
                prog=prog,
                args=argv,
                config=(tyro.conf.PositionalRequiredArgs,) if positional else None,
                **defaults,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise InputError(_one_line(printed.getvalue())) from None


def _one_line(box: str) -> str:
    """tyro draws its errors as boxes; this keeps their words."""
    lines = [line.strip("╭╮╰╯│─ ") for line in box.splitlines()]
    words = list(itertools.takewhile(lambda line: not line.startswith("For full helptext"), filter(None, lines)))
    if len(words) > 1 and words[1].casefold().startswith(words[0].casefold()):  # the box's title says the same
        del words[0]
    return " ".join(words) + " (see --help)"


def _defaults_from_file(config: type, argv: list[str]) -> dict[str, Any]:
    offered = any(f.name == "config" and f.default is None for f in dataclasses.fields(config))
    path = _config_path(argv) if offered else None
    if path is None:
        return {}
    return {"default": from_mapping(config, read_yaml(path), source=path)}


def flag_of(name: str) -> str:
    """A setting's flag, as users type it."""
    return "--" + name.replace("_", "-")


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping of settings.

    Raises:
      InputError: the file is missing, unreadable, not YAML or no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values or {}, dict):
        raise InputError(f"{path}: a mapping of settings is due")
    return values or {}


def _config_path(argv: list[str]) -> Path | None:
    path = None
    for place, word in enumerate(argv):  # the last one counts, as of any flag
        if word == "--config" and argv[place + 1 :]:
            path = Path(argv[place + 1])
        if word.startswith("--config="):
            path = Path(word.removeprefix("--config="))
    return path


def from_mapping(config: type[C], values: Mapping[str, Any], *, source: Path) -> C:
    """A dataclass from a YAML mapping; keys may use ``-`` or ``_``.

    Raises:
      InputError: an unknown key, or a value of the wrong type; ``source`` is named.
    """
    fields = {f.name: f for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    types = get_type_hints(config)
    known: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in fields:
            raise InputError(f"{source}: unknown key {key!r}; known are {', '.join(sorted(fields))}")
        known[name] = _typed(types[name], value, f"{source}: {key}")
    missing = [
        n
        for n, f in fields.items()
        if n not in known and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    return config(**known, **dict.fromkeys(missing, tyro.MISSING))


def _typed(kind: Any, value: Any, where: str) -> Any:
    """One YAML value as the field's type, through the same parser as the flags."""
    words = [str(item) for item in value] if isinstance(value, list) else [str(value)]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(Annotated[kind, tyro.conf.Positional], args=words, config=(tyro.conf.FlagConversionOff,))
    except SystemExit:
        raise InputError(f"{where}: {value!r} is not of type {getattr(kind, '__name__', kind)}") from None
