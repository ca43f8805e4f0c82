"""What a run folder says about its test set: ``results.json``, ``ranks.npy``, and the table on screen.

results.json  {"test": {"raw": {"hr@5": …}, "exclude_seen": {…}},   percent
               "protocol": "default" | "paper", "model": …, "dataset": {"path": …, "name": …, "hash": …},
               "intervals": as "test", each value [low, high],                 added by `evaluate`
               "differences": {other run: as "test", each [difference, low, high]},   by --compare
               …}
ranks.npy     int32 [n_test, 2]: see `metrics`
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from dmsrec_jax.bootstrap import chain_bootstrap, interval
from dmsrec_jax.config import EvaluateConfig, PipelineConfig, ReportConfig
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import read_json, read_npy, write_json, write_npy
from dmsrec_jax.metrics import METRICS, VIEWS, by_view, contributions

FEWEST_CHAINS = 6
"""Sessions below which there are no intervals of 95 %: five that agree are no surprise, by chance 1 in 16."""

Cell = Callable[[str, str], str]
Fits = Callable[[Any], bool]

_LABELS = {"raw": "seen items kept", "exclude_seen": "seen excluded"}
_CAPTION = "Percent, full ranking over all items. HR@K is the paper's P@K. Seen: items of the session itself."


def dataset_identity(dataset: SessionDataset) -> dict[str, str]:
    """How results and models refer to their dataset."""
    return {"path": str(dataset.path.absolute()), "name": dataset.name, "hash": dataset.hash}


def dataset_of(run: Path, about: Mapping[str, Any], dataset: SessionDataset) -> SessionDataset:
    """The run's dataset: this one, or its own with the same test set, such as one whose training rows are prefixes.

    Raises:
      InputError: it was made on another one, whose test set is not the same or is no longer there.
    """
    digest, path = about["dataset"]["hash"], Path(about["dataset"]["path"])
    if digest == dataset.hash:
        return dataset
    own = SessionDataset.load(path) if (path / "meta.json").is_file() else None
    if own is None or own.hash != digest or not own.has_same_test(dataset):
        raise InputError(f"{run}: a run on another dataset ({path}) than {dataset.path}, by hash")
    return own


def write_results(run: Path, results: Mapping[str, Any]) -> None:
    """Writes ``results.json`` into a run folder; ``results`` holds at least "test", "protocol", "model", "dataset"."""
    write_json(run / "results.json", dict(results))


def read_results(run: Path) -> dict[str, Any]:
    """Reads a run's ``results.json``.

    Raises:
      InputError: it is missing, unreadable, or an entry is missing or not of its form.
    """
    path = run / "results.json"
    results = read_json(path)
    if not isinstance(results, dict):
        raise InputError(f"{path}: not a run's results")
    for key, fits in _FORM.items():
        if (key in results or key in _DUE) and not fits(results.get(key)):
            wrong = "not as it should be" if key in results else "missing"
            raise InputError(f"{path}: not a run's results: {key} is {wrong}")
    return results


def is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def is_by_view(values: Any, fits: Fits = is_number) -> bool:
    """Whether both views hold each metric, and all fit."""
    try:
        return all(fits(values[view][metric]) for view in VIEWS for metric in METRICS)
    except (KeyError, TypeError):
        return False


def _numbers(n: int) -> Fits:
    return lambda value: isinstance(value, list) and len(value) == n and all(map(is_number, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_dataset(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(value.get(key)) for key in ("path", "hash"))


def _is_differences(value: Any) -> bool:
    return isinstance(value, dict) and all(is_by_view(of_run, _numbers(3)) for of_run in value.values())


def _is_origin(value: Any) -> bool:
    """Of intents or encoded titles; None where there are none."""
    return value is None or (
        isinstance(value, dict) and _is_text(value.get("path")) and isinstance(value.get("provenance", {}), dict)
    )


_DUE = ("test", "protocol", "model", "dataset")
_FORM: dict[str, Fits] = {
    "test": is_by_view,
    "protocol": _is_text,
    "model": _is_text,
    "dataset": _is_dataset,
    "intents": _is_origin,
    "item_text": _is_origin,
    "best_epoch": lambda value: type(value) is int and value > 0,
    "validation": lambda value: value is None or is_by_view(value),
    "train_seconds": is_number,
    "seconds": is_number,
    "test_no_intent": is_by_view,
    "std": is_by_view,
    "intervals": lambda value: is_by_view(value, _numbers(2)),
    "differences": _is_differences,
}
"""What of ``results.json`` is read again, and how it must look; of it `_DUE` must be there."""


def write_ranks(run: Path, ranks: np.ndarray) -> None:
    """Writes ``ranks.npy``, int32 [n_test, 2], into a run folder."""
    write_npy(run / "ranks.npy", ranks.astype(np.int32))


def read_ranks(run: Path, n_test: int) -> np.ndarray:
    """Reads ``ranks.npy``, int32 [n_test, 2].

    Raises:
      InputError: it is missing, foreign, of another size, or holds a rank below 1.
    """
    path = run / "ranks.npy"
    ranks = read_npy(path, dtype=np.int32, ndim=2, mmap=False)
    if ranks.shape != (n_test, len(VIEWS)):
        raise InputError(f"{path}: of shape {ranks.shape}; {(n_test, len(VIEWS))} is due")
    bad = np.flatnonzero((ranks < 1).any(1))
    if len(bad):
        raise InputError(f"{path}: row {bad[0]} holds a rank below 1")
    return ranks


def percent(ranks: np.ndarray) -> np.ndarray:
    """What each row adds to each metric, `contributions` in percent."""
    return 100 * contributions(ranks)


def check_no_model(run: Path, named: str) -> None:
    """Refuses to replace a model by results; ``named`` leads the message.

    Raises:
      InputError: the folder holds one.
    """
    if (run / "model.json").exists():
        raise InputError(f"{named} holds a model; remove it yourself")


def check_bootstrap(config: EvaluateConfig | ReportConfig | PipelineConfig) -> None:
    """Refuses numbers that no bootstrap can be made with."""
    if config.bootstrap < 2:
        raise InputError(f"--bootstrap {config.bootstrap}: at least 2 resamples are due")
    if config.seed < 0:
        raise InputError(f"--seed {config.seed}: at least 0 is due")


def intervals(
    values: np.ndarray, dataset: SessionDataset, config: EvaluateConfig | ReportConfig
) -> dict[str, dict[str, Any]]:
    """Chain-clustered 95 % intervals of the means of test rows' `percent`: by view and metric [low, high].

    Of fewer than `FEWEST_CHAINS` sessions all that is possible, which tells nothing apart.
    """
    return by_view(_intervals(values, dataset, config, least=0.0))


def differences(
    values: np.ndarray, dataset: SessionDataset, config: EvaluateConfig | ReportConfig
) -> dict[str, dict[str, Any]]:
    """The same of differences between two runs' rows, which pairs them: [difference, low, high]."""
    bounds = _intervals(values, dataset, config, least=-100.0)
    return by_view(np.concatenate([values.mean(axis=0)[:, None], bounds], axis=1))


def _intervals(
    values: np.ndarray, dataset: SessionDataset, config: EvaluateConfig | ReportConfig, *, least: float
) -> np.ndarray:
    if len(np.unique(dataset.test.chains)) < FEWEST_CHAINS:
        return np.tile([least, 100.0], (values.shape[1], 1))
    return interval(chain_bootstrap(values, dataset.test.chains, resamples=config.bootstrap, seed=config.seed))


def print_results(runs: Mapping[str, Mapping[str, Any]], console: Console | None = None) -> None:
    """Prints one table of several runs' results by name.

    Behind ± stands half the width of "intervals", or of several seeds "std", where results have them.
    """
    caption = _CAPTION
    if any("std" in results for results in runs.values()):
        caption += " ±: standard deviation over seeds."
    if any("intervals" in results for results in runs.values()):
        caption += " ±: half the 95 % interval, chains of prefixes resampled together."
    if any(results.get("protocol") == "paper" for results in runs.values()):
        caption += " †: paper protocol, the best epoch of each metric was SELECTED ON THE TEST SET."
    _print_table("", {label(name, results): _cell(results) for name, results in runs.items()}, caption, console)


def run_names(runs: Sequence[Path]) -> list[str]:
    """What runs are called in print: by their folder, a sweep's by its setting too, by their path where two agree."""

    def name(run: Path) -> str:
        parts = run.resolve().parts
        return "/".join(parts[-2:]) if re.fullmatch(r"seed-\d+", parts[-1]) else parts[-1]

    names = [name(run) for run in runs]
    return [str(run) if names.count(name) > 1 else name for run, name in zip(runs, names, strict=True)]


def label(name: str, results: Mapping[str, Any]) -> str:
    """A run's name as printed: with a † where its results were selected on the test set."""
    return name + ("†" if results.get("protocol") == "paper" else "")


def _cell(results: Mapping[str, Any]) -> Cell:
    def text(view: str, metric: str) -> str:
        value = f"{results['test'][view][metric]:.2f}"
        if "std" in results:
            return f"{value}\n±{results['std'][view][metric]:.2f}"
        if "intervals" not in results:
            return value
        low, high = results["intervals"][view][metric]
        return f"{value}\n±{(high - low) / 2:.2f}"

    return text


def print_differences(name: str, differences: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints paired differences, by view and metric [difference, low, high]; * marks intervals that leave out 0."""

    def text(view: str, metric: str) -> str:
        difference, low, high = differences[view][metric]
        return f"{difference:+.2f}{'*' if low > 0 or high < 0 else ' '}\n±{(high - low) / 2:.2f} "

    caption = f"{_CAPTION} Paired differences of the kept epochs' ranks. *: the 95 % interval leaves out 0."
    _print_table(name, {"difference": text}, caption, console)


def _print_table(title: str, rows: Mapping[str, Cell], caption: str, console: Console | None) -> None:
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", padding=0)
    table.add_column(title, overflow="fold", min_width=15)
    for metric in METRICS:
        table.add_column(metric.upper().replace("@", "\n@"), justify="right", no_wrap=True)
    for view in VIEWS:
        table.add_row(_LABELS[view], style="bold")
        for name, cell in rows.items():
            table.add_row(name, *[cell(view, metric) for metric in METRICS])
        table.add_section()
    console = console or Console(markup=False)
    # Into a file or a narrow terminal the whole table goes all the same: rich would drop its last columns.
    needed = console.measure(table, options=console.options.update(width=200)).maximum
    console.print(table, width=max(console.width, needed), crop=False)
