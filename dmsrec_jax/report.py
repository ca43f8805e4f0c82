"""``python -m dmsrec_jax.report``: one self-contained HTML page about runs, its figures and a Markdown table."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dmsrec_jax import cli, report_figures, report_tables
from dmsrec_jax.artifacts import read_intents
from dmsrec_jax.config import ReportConfig
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.files import check_replaceable, staged_folder
from dmsrec_jax.report_data import (
    JudgedRun,
    by_length,
    by_popularity,
    intent_counts,
    intents_folder,
    published,
    read_runs,
    sweeps,
)
from dmsrec_jax.report_examples import choose, draw, examples
from dmsrec_jax.report_page import figure, heading, page, paragraph
from dmsrec_jax.report_tables import as_html, as_markdown
from dmsrec_jax.results import check_bootstrap, differences, intervals, percent

EXAMPLES = 10
"""Sessions shown."""


class Drawn(NamedTuple):
    """A figure, and where it belongs."""

    file: str
    """Name of its file, without .png."""
    section: str
    caption: str
    png: bytes


def report(config: ReportConfig) -> None:
    """Writes report.html, results.md and a .png of each figure.

    Raises:
      InputError: a flag is out of range, a folder is no run, or the runs belong to different data sets.
    """
    check_bootstrap(config)
    check_replaceable(config.out, marker="report.html", overwrite=config.overwrite, reads=config.runs)
    dataset, runs = read_runs(config)
    source, paper = published(dataset.name, [*dict.fromkeys(run.results["model"] for run in runs)])
    values = [percent(run.ranks) for run in runs]
    results = report_tables.results(runs, [intervals(own, dataset, config) for own in values], paper)
    paired = [differences(own - values[0], dataset, config) for own in values[1:]]
    gains = report_tables.differences(runs, paired)
    drawn = [*figures(dataset, runs)]

    body = [*opening(dataset, runs), heading("Results"), paragraph(report_tables.RESULTS, soft=True)]
    if any(run.results["protocol"] == "paper" for run in runs):
        body.append(paragraph(report_tables.SELECTED, soft=True))
    body += as_html(results)
    if paper:
        body.append(paragraph(f"Shaded: {source}. {report_tables.PAPER}", soft=True))
    if gains:
        body += [heading(f"Differences from {runs[0].label}"), paragraph(report_tables.DIFFERENCES, soft=True)]
        body += as_html(gains)
    for section in dict.fromkeys(one.section for one in drawn):
        body += [heading(section), *(figure(one.png, one.caption) for one in drawn if one.section == section)]
    if any(run.is_trained for run in runs):
        rows = draw(dataset, EXAMPLES, config.seed)
        text = (
            f"{len(rows)} test sessions of different chains, drawn at random (seed {config.seed}); targets are marked. "
            "Recommendations and ranks leave out seen items."
        )
        if choose(runs)[1]:
            text += " Before: without intents; after: with them."
        body += [heading("Example sessions"), paragraph(text, soft=True), *examples(dataset, runs, rows)]

    with staged_folder(config.out, marker="report.html", overwrite=config.overwrite) as folder:
        for one in drawn:
            (folder / f"{one.file}.png").write_bytes(one.png)
        (folder / "results.md").write_text(as_markdown(runs, results, gains), encoding="utf-8")
        document = page(f"Session recommendation on {dataset.name}", body)
        # A title may hold half a surrogate pair, which no file can.
        (folder / "report.html").write_bytes(document.encode("utf-8", "replace"))
    print(f"report: {config.out / 'report.html'}")


def opening(dataset: SessionDataset, runs: Sequence[JudgedRun]) -> list[str]:
    """What the page is about: the data, the runs, and where no LLM took part."""
    counts = dataset.meta["counts"]
    train, test = (len(np.unique(samples.chains)) for samples in (dataset.train, dataset.test))
    text = (
        f"{counts['train_rows']:,} training and {counts['test_rows']:,} test sessions (prefixes of {train:,} and "
        f"{test:,} whole ones), {counts['items']:,} items; data hash {dataset.hash[:12]}."
    )
    without = [run.name for run in runs if run.engine and run.engine.startswith("no LLM")]
    parts = [paragraph(text)]
    if without:
        parts.append(
            paragraph(f"No LLM took part in {', '.join(without)}: the intents come from a comparison of titles.")
        )
    return [*parts, heading("Runs"), report_tables.overview(runs)]


def figures(dataset: SessionDataset, runs: Sequence[JudgedRun]) -> Iterator[Drawn]:
    """All figures that these runs allow."""
    learned = [run for run in runs if run.history]
    if learned:
        yield Drawn(
            "curves", "Learning", "Training loss and the metric that chooses the epoch.", report_figures.curves(learned)
        )
    panels = {"clicks in the session": by_length(dataset), "training clicks on the target": by_popularity(dataset)}
    caption = "HR@20, seen items excluded, by the session's length and by how often its target was clicked in training."
    yield Drawn("groups", "Whom it serves", caption, report_figures.by_group(runs, panels))
    seen = set()
    for run in runs:
        if not run.engine or run.results["intents"]["path"] in seen:
            continue
        folder = intents_folder(run)
        if folder is not None:
            seen.add(run.results["intents"]["path"])
            caption = f"Explicit and latent intents that {run.engine} named for {run.name} (the paper's Figure 3)."
            png = report_figures.intents(intent_counts(read_intents(folder, run.dataset)), run.engine)
            yield Drawn(f"intents-{len(seen)}", "Intents", caption, png)
    for number, sweep in enumerate(sweeps(runs), start=1):
        least, most = min(sweep.runs), max(sweep.runs)
        count = str(most) if least == most else f"{least} to {most}"
        each = f"the mean of {count} runs that differ in their seed alone" if most > 1 else "1 run"
        caption = f"The paper's {sweep.name}; test set, {each} at each place."
        yield Drawn(f"sweep-{number}", "Settings", caption, report_figures.sweep(sweep))


def main(argv: list[str] | None = None) -> None:
    cli.run(report, ReportConfig, argv, prog="python -m dmsrec_jax.report", positional=True)


if __name__ == "__main__":
    main()
