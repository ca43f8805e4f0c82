"""The figures of a report, as PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dmsrec_jax.report_data import Groups, JudgedRun, Sweep, hit_rates

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ee",
    "axes.edgecolor": "#8a94a3",
    "axes.titlesize": 10,
    "axes.prop_cycle": cycler(
        color=["#1f5fae", "#d9762b", "#3a8f5c", "#8a5bb0", "#b3444c", "#6d7885", "#c9a227", "#2aa1a8"]
    ),
    "legend.frameon": False,
    "legend.fontsize": 8,
}
HIDDEN = {"Software": None}
"""No version in the files: the same numbers give the same bytes."""
LABEL = 48
"""Most characters of a name."""


def _figure(columns: int, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.9 * columns, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, metadata=HIDDEN)
    return file.getvalue()


def _text(label: str) -> str:
    """Names as they are, but not without end: a $ would begin a formula, and a leading _ hides a legend's entry."""
    kept = label if len(label) <= LABEL else "…" + label[1 - LABEL :]  # paths differ at their ends
    return kept.replace("$", r"\$").lstrip("_")


def curves(runs: Sequence[JudgedRun]) -> bytes:
    """Loss and MRR@20 by epoch, the kept epoch marked."""
    with mpl.rc_context(STYLE):
        figure, (losses, scores) = _figure(2)
        for run in runs:
            epochs = [entry["epoch"] for entry in run.history]
            part = "validation" if "validation" in run.history[0] else "test"
            values = [entry[part]["raw"]["mrr@20"] for entry in run.history]
            losses.plot(epochs, [entry["loss"] for entry in run.history], marker=".", label=_text(run.label))
            (line,) = scores.plot(epochs, values, marker=".", label=_text(f"{run.label}, {part}"))
            best = int(run.results.get("best_epoch") or np.argmax(values) + 1)
            scores.plot(best, values[best - 1], marker="o", markersize=8, fillstyle="none", color=line.get_color())
        losses.set(title="Training loss", xlabel="epoch")
        scores.set(title="MRR@20, seen items kept (○: epoch kept)", xlabel="epoch", ylabel="%")
        for axes in (losses, scores):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend()
        return _png(figure)


def by_group(runs: Sequence[JudgedRun], panels: Mapping[str, Groups]) -> bytes:
    """HR@20, seen items excluded, of groups of test sessions: a panel per grouping, with its sessions' numbers."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(len(panels), 4.0)
        for panel, (name, groups) in zip(axes, panels.items(), strict=True):
            places = np.arange(len(groups.names))
            for run in runs:
                panel.plot(places, hit_rates(run, groups), marker="o", markersize=4, label=_text(run.label))
            sizes = np.bincount(groups.of, minlength=len(places))
            ticks = [f"{label}\n({size:,})" for label, size in zip(groups.names, sizes, strict=True)]
            panel.set_xticks(places, ticks, fontsize=8)
            panel.set(title=f"HR@20 by {name}", xlabel=f"{name} (test sessions)", ylabel="%")
            panel.set_ylim(bottom=0)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return _png(figure)


def intents(counts: Mapping[str, Mapping[str, np.ndarray]], engine: str) -> bytes:
    """The paper's Figure 3: how many sessions have how many explicit and latent intents, by part and kind."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(len(counts))
        figure.suptitle(_text(f"Intents per session: {engine}"), fontsize=10)
        for panel, (part, kinds) in zip(axes, counts.items(), strict=True):
            for shift, (kind, sessions) in zip((-0.2, 0.2), kinds.items(), strict=True):
                panel.bar(np.arange(len(sessions)) + shift, sessions, width=0.4, label=kind)
            panel.set(title=part, xlabel="intents", ylabel="sessions")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.grid(axis="x", visible=False)
            panel.legend()
        return _png(figure)


def sweep(found: Sweep) -> bytes:
    """HR@20 and MRR@20 over what runs vary in: bars for names, a line for numbers, a map for two settings."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(2)
        for panel, metric in zip(axes, ("hr@20", "mrr@20"), strict=True):
            values = np.array([scores[metric] for scores in found.scores])
            panel.set_title(f"{metric.upper()}, seen items excluded (%)")
            if len(found.keys) == 2:
                _map(panel, found, values)
            elif isinstance(found.places[0][0], str):
                bars = panel.bar([str(place[0]) for place in found.places], values, width=0.6)
                panel.bar_label(bars, fmt="%.2f", fontsize=8)
                panel.set_xlabel(found.keys[0])
                panel.grid(axis="x", visible=False)
            else:
                panel.plot([float(place[0]) for place in found.places], values, marker="o", markersize=4)
                panel.set_xlabel(found.keys[0])
        return _png(figure)


def _map(panel: Axes, found: Sweep, values: np.ndarray) -> None:
    rows, columns = (sorted({place[i] for place in found.places}) for i in range(2))
    grid = np.full((len(rows), len(columns)), np.nan)
    for place, value in zip(found.places, values, strict=True):
        grid[rows.index(place[0]), columns.index(place[1])] = value
    panel.imshow(grid, cmap="Blues", origin="lower", aspect="auto")
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for row, column in np.argwhere(~np.isnan(grid)):
        color = "white" if grid[row, column] > middle else "black"
        panel.text(column, row, f"{grid[row, column]:.2f}", ha="center", va="center", fontsize=8, color=color)
    panel.set_xticks(range(len(columns)), [str(value) for value in columns])
    panel.set_yticks(range(len(rows)), [str(value) for value in rows])
    panel.set(xlabel=found.keys[1], ylabel=found.keys[0])
    panel.grid(visible=False)
