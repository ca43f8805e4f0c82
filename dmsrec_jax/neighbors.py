"""``python -m dmsrec_jax.neighbors``: the references of `neighbor_methods`, tuned on validation, scored on test."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dmsrec_jax.cli import run
from dmsrec_jax.config import NeighborsConfig
from dmsrec_jax.data import SessionDataset, Split
from dmsrec_jax.data.splits import validation_split
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import check_no_file, staged_folder
from dmsrec_jax.metrics import rank_targets, summarise
from dmsrec_jax.neighbor_methods import METHODS, Scorer
from dmsrec_jax.results import check_no_model, dataset_identity, print_results, write_ranks, write_results

BATCH = 128
"""Sessions scored at a time."""
_PROGRESS = TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()


def neighbors(config: NeighborsConfig, console: Console | None = None) -> None:
    """Chooses each method's settings on validation, fits it on all training sessions and scores the test set once.

    Settings are chosen by MRR@20 with seen items excluded. Writes a run folder per method: ``config.yaml`` (the
    settings chosen), ``results.json`` and ``ranks.npy``.

    Raises:
      InputError: an unknown method, a run that is there already, or a dataset or fraction that does not do.
    """
    unknown = [name for name in config.methods if name not in METHODS]
    if unknown or not config.methods:
        raise InputError(f"--methods {' '.join(unknown)}: known are {', '.join(METHODS)}")
    methods = list(dict.fromkeys(config.methods))
    check_no_file(config.out, "--out ")
    for name in methods:
        check_no_model(config.out / name, f"--out {config.out}: {name}")
    dataset = SessionDataset.load(config.dataset)
    _, valid, earlier = validation_split(dataset, config.validation_fraction)
    results: dict[str, Any] = {}
    with ExitStack() as stack, Progress(*_PROGRESS, console=console) as progress:
        runs = [
            stack.enter_context(staged_folder(config.out / name, marker="results.json", overwrite=config.overwrite))
            for name in methods
        ]
        for name, run_folder in zip(methods, runs, strict=True):
            method = METHODS[name]
            trials = [dict(zip(method.grid, values, strict=True)) for values in product(*method.grid.values())]
            task = progress.add_task(name, total=len(trials) * len(valid) + len(dataset.test))
            advance = partial(progress.advance, task)
            started = time.perf_counter()
            scored = [
                summarise(rank_split(method.fit(earlier, dataset.n_items, **trial), valid, advance)) for trial in trials
            ]
            best = max(range(len(trials)), key=lambda i: scored[i]["exclude_seen"]["mrr@20"])
            ranks = rank_split(method.fit(dataset.sessions, dataset.n_items, **trials[best]), dataset.test, advance)
            results[name] = {
                "test": summarise(ranks),
                "validation": scored[best],
                "protocol": "default",
                "model": name,
                "dataset": dataset_identity(dataset),
                "seconds": time.perf_counter() - started,
            }
            about = {"model": name, "dataset": str(config.dataset), "validation_fraction": config.validation_fraction}
            (run_folder / "config.yaml").write_text(yaml.safe_dump(about | trials[best], sort_keys=False))
            write_ranks(run_folder, ranks)
            write_results(run_folder, results[name])
    print_results(results, console)


def rank_split(scorer: Scorer, split: Split, advance: Callable[[int], None]) -> np.ndarray:
    """Ranks int32 [rows, 2] of the split's targets; ``advance`` is told the rows done since the last call."""
    ranks = []
    for start in range(0, len(split), BATCH):
        batch = split.rows(start, min(start + BATCH, len(split)))
        row = np.repeat(np.arange(len(batch)), batch.lengths)
        ranks.append(rank_targets(scorer(batch), batch.targets, row, batch.items))
        advance(len(batch))
    return np.concatenate(ranks)


if __name__ == "__main__":
    run(neighbors, NeighborsConfig, prog="python -m dmsrec_jax.neighbors")
