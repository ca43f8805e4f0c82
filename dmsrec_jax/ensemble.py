"""Reciprocal rank fusion (Cormack, Clarke & Büttcher, SIGIR 2009) of two runs' rankings of the whole catalogue.

An item scores Σ over runs of 1 / (K + its rank there). K is the paper's 60 and the runs weigh the same, so nothing is
tuned. Items that a run ties share their worst rank, as ties count against a target: the many items to which a
neighbour method gives 0 have rank n_items there and gain next to nothing. With seen items excluded, both runs' lists
are ranked without them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from scipy.stats import rankdata

from dmsrec_jax.cli import read_yaml
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.data.samples import take
from dmsrec_jax.errors import InputError
from dmsrec_jax.graphs import build_graphs, fixed_order
from dmsrec_jax.metrics import rank_targets
from dmsrec_jax.neighbor_methods import METHODS
from dmsrec_jax.runs import load_run
from dmsrec_jax.scoring import BATCH

K = 60

Scores = Callable[[np.ndarray], np.ndarray]
"""From a batch of test sessions, int32 [B] with n_test in empty places, to float32 [B, n_items + 1]."""


def fused_test_ranks(runs: Sequence[tuple[Path, SessionDataset]], console: Console | None = None) -> np.ndarray:
    """Ranks of the test targets in the fusion of several runs: int32 [n_test, 2], see `metrics`.

    Args:
      runs: each with its dataset; the test sets are the same.
      console: where progress is shown.

    Raises:
      InputError: a run can rank nothing, or is not of its dataset.
    """
    test = runs[0][1].test
    n = len(test)
    sources = [open_scores(path, dataset) for path, dataset in runs]
    ranks = np.zeros((n, 2), np.int32)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("fused sessions", total=n)
        for batch in fixed_order(build_graphs(test), min(BATCH, n)):
            real = batch < n
            sessions = batch[real]
            lists = [scores(batch)[real] for scores in sources]
            clicks = take(test, sessions)
            rows = np.repeat(np.arange(len(sessions)), clicks.lengths)
            ranks[sessions] = fused_ranks(lists, np.asarray(test.targets)[sessions], rows, clicks.items)
            bar.advance(task, len(sessions))
    return ranks


def fused_ranks(lists: Sequence[np.ndarray], targets: np.ndarray, rows: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Ranks int32 [B, 2] of the targets in the fusion of several runs' scores; arguments as `metrics.rank_targets`."""
    raw = rank_targets(fuse(lists), targets, rows, seen)[:, 0]
    unseen = [np.array(scores) for scores in lists]
    for scores in unseen:
        scores[rows, seen] = -np.inf
    return np.stack([raw, rank_targets(fuse(unseen), targets, rows, seen)[:, 1]], axis=1)


def fuse(lists: Sequence[np.ndarray]) -> np.ndarray:
    """Σ 1 / (K + rank) of several runs' scores [B, n_items + 1]: float64 of the same shape; column 0 (padding) is 0."""
    fused = np.zeros(lists[0].shape)
    for scores in lists:
        fused[:, 1:] += 1 / (K + rankdata(-scores[:, 1:], method="max", axis=1))
    return fused


def open_scores(run: Path, dataset: SessionDataset) -> Scores:
    """What scores the dataset's test sessions as a run does: its model, or its neighbour method fitted again.

    Raises:
      InputError: the run has neither, or is another dataset's.
    """
    if (run / "model.json").is_file():
        loaded = load_run(run, dataset.path)
        scorer = loaded.scorer("test", loaded.read_intents())
        return lambda batch: scorer.logits(loaded.params, batch)
    about = read_yaml(run / "config.yaml") if (run / "config.yaml").is_file() else {}
    method = METHODS.get(str(about.get("model")))
    settings = {name: about.get(name) for name in method.grid} if method else {}
    if method is None or not all(isinstance(value, int | float) for value in settings.values()):
        raise InputError(f"{run}: neither a model nor a run of `neighbors`, so its rankings cannot be fused")
    score = method.fit(dataset.sessions, dataset.n_items, **settings)
    last = len(dataset.test) - 1
    return lambda batch: score(take(dataset.test, np.minimum(batch, last)))
