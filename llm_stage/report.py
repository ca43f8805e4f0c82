"""What came out of a run: counts and rates as `report.json`, a printed table, and Figure 3's distribution as a PNG."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from dmsrec_jax.data import Sessions
from dmsrec_jax.errors import InputError
from llm_stage.intents import COUNTS, Answers, Named, part_of, spread
from llm_stage.questions import RowSpace

GAP = 1.2
"""The train part's hit rate over the test part's, from which on the gap is pointed out."""


def summarise(answers: Answers, named: Named, picks: Sessions, space: RowSpace, label: str) -> dict[str, Any]:
    """The report as JSON values. `COUNTS` are of questions, the rest is of sessions.

    Args:
      answers: of all questions.
      named: intents of all rows.
      picks: items named for each row.
      space: the rows.
      label: the engine's.
    """
    totals = {name: int(values.sum()) for name, values in answers.counts.items()}
    bounds = {"train": (0, space.n_train), "test": (space.n_train, len(space.targets))}
    return {
        "engine": label,
        "sessions": len(space.targets),
        "questions": len(answers.rows),
        "intents": len(named.titles),
        "valid": len(answers.picks.items),
        **{name: totals[name] for name in COUNTS},
        "cached_share": totals["cached_tokens"] / totals["prompt_tokens"] if totals["prompt_tokens"] else 0.0,
        "without_title": named.untitled,
        "parts": {part: _part(named, picks, space, *rows) for part, rows in bounds.items()},
    }


def _part(named: Named, picks: Sessions, space: RowSpace, start: int, stop: int) -> dict[str, Any]:
    """Rates are shares of the part's sessions."""
    rows = np.arange(start, stop)
    n = len(rows)
    found = spread(picks, rows)
    hit = np.bincount(
        np.repeat(np.arange(n), found.lengths)[found.items == np.repeat(space.targets[rows], found.lengths)],
        minlength=n,
    )
    explicit, latent = (np.diff(part_of(lists, start, stop).offsets) for lists in (named.explicit, named.latent))
    return {
        "sessions": n,
        "empty": int(np.count_nonzero(found.lengths == 0)),
        "explicit_per_session": float(explicit.mean()),
        "latent_per_session": float(latent.mean()),
        "no_explicit": float(np.mean(explicit == 0)),
        "no_latent": float(np.mean(latent == 0)),
        "neither": float(np.mean(explicit + latent == 0)),
        "sessions_by_explicit": np.bincount(explicit).tolist(),
        "sessions_by_latent": np.bincount(latent).tolist(),
        "target_among_intents": float(np.mean(hit > 0)),
        "target_among_candidates": float((space.candidates[rows] == space.targets[rows, None]).any(1).mean()),
    }


def print_report(report: dict[str, Any], console: Console) -> None:
    """The report as a table, with what the reader of its numbers has to know."""
    parts = report["parts"]
    table = Table("", *parts, title=f"Intents: {report['engine']}", box=None)
    percent = ("no_explicit", "no_latent", "neither", "target_among_intents", "target_among_candidates")
    for key in ("sessions", "empty", "explicit_per_session", "latent_per_session", *percent):
        values = (part[key] for part in parts.values())
        table.add_row(key.replace("_", " "), *(_text(value, percent=key in percent) for value in values))
    console.print(table)
    console.print(
        f"{report['questions']:,} questions for {report['sessions']:,} sessions; {report['valid']:,} valid answers, "
        f"{report['invalid']:,} invalid, {report['duplicates']:,} duplicate; {report['intents']:,} distinct intents",
        soft_wrap=True,
    )
    if report["refused"]:
        console.print(f"{report['refused']:,} questions were refused by a content filter", soft_wrap=True)
    if report["without_title"]:
        console.print(f"{report['without_title']:,} items named have no title and are left out", soft_wrap=True)
    if report["prompt_tokens"]:
        console.print(
            f"{report['prompt_tokens']:,} prompt tokens ({100 * report['cached_share']:.1f} % cached), "
            f"{report['output_tokens']:,} written",
            soft_wrap=True,
        )
    console.print("no explicit, no latent: there the reader takes the other class's mean (eq. 6, 7).", soft_wrap=True)
    for key in ("target_among_candidates", "target_among_intents"):
        train, test = (parts[part][key] for part in ("train", "test"))
        if train > GAP * test:
            console.print(
                f"{key.replace('_', ' ')}: train {100 * train:.2f} %, test {100 * test:.2f} %: a fused model learns to "
                "trust intents more than test sessions bear out. So it is where the candidates' model was trained on "
                "these very targets (`candidates --cross-fit` mends that), or where training sessions are the easier.",
                soft_wrap=True,
            )


def _text(value: float, *, percent: bool) -> str:
    return f"{100 * value:.2f} %" if percent else f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def check_figures() -> None:
    """Refuses to begin where `write_figure` could not end: before hours of answering, not after.

    Raises:
      InputError: matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("intents.png needs matplotlib; pip install matplotlib")


def write_figure(path: Path, report: dict[str, Any], dataset: str) -> None:
    """The paper's Figure 3: how many sessions have how many explicit and latent intents."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    figure.suptitle(f"Intents per session, {dataset}: {report['engine']}")
    for axes, (part, counts) in zip(figure.subplots(1, 2), report["parts"].items(), strict=True):
        for shift, kind in ((-0.2, "explicit"), (0.2, "latent")):
            sessions = counts[f"sessions_by_{kind}"]
            axes.bar(np.arange(len(sessions)) + shift, sessions, width=0.4, label=kind)
        axes.set(title=part, xlabel="intents", ylabel="sessions")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    with mpl.rc_context({"font.family": "DejaVu Sans"}):
        figure.savefig(path, format="png", dpi=120)
