"""The result tables of a report: built once, shown as HTML and as Markdown."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from dmsrec_jax.config import TrainConfig
from dmsrec_jax.metrics import METRICS, VIEWS
from dmsrec_jax.report_data import JudgedRun, Views, intents_folder
from dmsrec_jax.report_page import heading, number, table

TITLES = {"raw": "Seen items kept", "exclude_seen": "Seen items excluded"}
RESULTS = (
    "Percent, full ranking over all items; HR@K is the paper's P@K. Seen: items of the session itself. "
    "±: half the 95 % interval, from a bootstrap that draws whole chains of prefixes."
)
SELECTED = (
    "†: paper protocol, the best epoch of each metric was SELECTED ON THE TEST SET; "
    "±, differences and hit rates by kind of session are of the one epoch kept."
)
DIFFERENCES = (
    "Paired by test session, with 95 % intervals from the same bootstrap; * where the interval leaves out 0. "
    "Nothing is corrected for how many differences there are."
)

PAPER = "Its protocol is another: seen items kept, the best epoch of each metric on the test set."


class Cell(NamedTuple):
    value: str
    below: str = ""
    kind: str = ""
    """A class of the page: up, down."""


class Row(NamedTuple):
    name: str
    cells: list[Cell]
    """One of each metric."""
    kind: str = ""
    """A class of the page: paper."""


class Grid(NamedTuple):
    title: str
    rows: list[Row]


def results(runs: Sequence[JudgedRun], bounds: Sequence[Views], paper: Sequence[dict[str, Any]]) -> list[Grid]:
    """Results by view; the paper's rows belong to the one that keeps seen items.

    Args:
      runs: any.
      bounds: of each run, [low, high] of each metric.
      paper: rows of its Tables 2 and 3.
    """

    def cell(run: JudgedRun, bound: Views, view: str, metric: str) -> Cell:
        low, high = bound[view][metric]
        return Cell(f"{run.results['test'][view][metric]:.2f}", f"±{(high - low) / 2:.2f}")

    grids = [
        Grid(
            TITLES[view],
            [
                Row(run.label, [cell(run, bound, view, metric) for metric in METRICS])
                for run, bound in zip(runs, bounds, strict=True)
            ],
        )
        for view in VIEWS
    ]
    for row in paper:
        cells = [Cell(f"{row[metric]:.2f}" if metric in row else "–") for metric in METRICS]
        grids[0].rows.append(Row(f"{row['model']} (paper, Table {row['table']})", cells, "paper"))
    return grids


def differences(runs: Sequence[JudgedRun], gains: Sequence[Views]) -> list[Grid]:
    """By view, each [difference, low, high] of all runs but the first from the first; none of a single run."""

    def cell(gain: Views, view: str, metric: str) -> Cell:
        difference, low, high = gain[view][metric]
        kind = "up" if low > 0 else "down" if high < 0 else ""
        return Cell(f"{difference:+.2f}{'*' if kind else ''}", f"{low:+.2f} … {high:+.2f}", kind)

    return [
        Grid(
            TITLES[view],
            [
                Row(run.label, [cell(gain, view, metric) for metric in METRICS])
                for run, gain in zip(runs[1:], gains, strict=True)
            ],
        )
        for view in VIEWS
        if gains
    ]


def overview(runs: Sequence[JudgedRun]) -> str:
    """What each run is, as an HTML table: model, where intents come from, settings, epochs and time."""

    def cells(run: JudgedRun) -> list[str]:
        results, encoder = run.results, run.provenance.get("encoder")
        moved = "no longer there" if run.engine and intents_folder(run) is None else None
        intents = ", ".join(map(str, filter(None, (run.engine, encoder, moved)))) or "–"
        epochs = f"{results['best_epoch']} of {results.get('epochs', '?')}" if "best_epoch" in results else "–"
        seconds = results.get("train_seconds", results.get("seconds"))
        time = "–" if seconds is None else f"{seconds:,.0f} s" if seconds >= 1 else "< 1 s"
        seed = str(results.get("seed", "–"))
        return [number(text) for text in (results["model"], intents, _settings(run), seed, epochs, time)]

    columns = ["", "Model", "Intents", "Settings that are no defaults", "Seed", "Epoch kept", "Training"]
    return table(columns, [(run.name, cells(run), "") for run in runs], words=True)


def _settings(run: JudgedRun) -> str:
    """What of its config.yaml is neither a default of `train`, nor where things are, nor told beside it."""
    told = {"backbone", "model", "dataset", "out", "config", "intents", "item_text", "seed"}
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    chosen = {
        key: value
        for key, value in run.settings.items()
        if key not in told and value != defaults.get(key, dataclasses.MISSING)
    }
    return ", ".join(f"{str(key).replace('_', '-')} {value}" for key, value in chosen.items()) or "–"


def as_html(grids: Sequence[Grid]) -> list[str]:
    columns = ["", *(metric.upper() for metric in METRICS)]
    return [
        part
        for title, rows in grids
        for part in (
            heading(title, 3),
            table(columns, [(row.name, [number(*cell) for cell in row.cells], row.kind) for row in rows]),
        )
    ]


def as_markdown(runs: Sequence[JudgedRun], results: Sequence[Grid], gains: Sequence[Grid]) -> str:
    """Results, and differences from the first run where there are any, as a Markdown document."""
    parts = ["## Results", RESULTS, *map(_md, results)]
    if any(run.results["protocol"] == "paper" for run in runs):
        parts.insert(2, SELECTED)
    if gains:
        parts += [f"## Differences from {plain(runs[0].label)}", DIFFERENCES, *map(_md, gains)]
    return "\n\n".join(parts) + "\n"


def _md(grid: Grid) -> str:
    head = f"| | {' | '.join(metric.upper() for metric in METRICS)} |\n|---|{'---:|' * len(METRICS)}"
    rows = (
        f"| {plain(row.name)} | {' | '.join(f'{cell.value} {cell.below}'.strip() for cell in row.cells)} |"
        for row in grid.rows
    )
    return "\n".join([f"### {grid.title}", "", head, *rows])


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", " ".join(text.split()))
