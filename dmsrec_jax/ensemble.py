"""Fusion of several runs' rankings of the whole catalogue, by their ranks or by their scores.

``ranks``: reciprocal rank fusion (Cormack, Clarke & Büttcher, SIGIR 2009). An item scores Σ over runs of
1 / (K + its rank there). K is the paper's 60 and the runs weigh the same, so nothing is tuned. Items that a run ties
share their worst rank, as ties count against a target: the many items to which a neighbour method gives 0 have rank
n_items there and gain next to nothing. With seen items excluded, all runs' lists are ranked without them.

``scores``: a logarithmic opinion pool (Genest & Zidek, Statistical Science 1986), Σ w · log p of what each run holds
for probable; the weights are chosen on the validation sessions that no run was fitted to.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress
from scipy.special import log_softmax
from scipy.stats import rankdata

from dmsrec_jax.cli import from_mapping, read_yaml
from dmsrec_jax.config import TrainConfig
from dmsrec_jax.data import SessionDataset, Sessions, Split
from dmsrec_jax.data.samples import take
from dmsrec_jax.data.splits import validation_split
from dmsrec_jax.errors import InputError
from dmsrec_jax.graphs import build_graphs
from dmsrec_jax.intents import intent_rows
from dmsrec_jax.metrics import rank_targets, summarise
from dmsrec_jax.neighbor_methods import METHODS
from dmsrec_jax.orders import fixed_order
from dmsrec_jax.runs import Run, load_run
from dmsrec_jax.scoring import BATCH, Scorer

K = 60
STEPS = 10
"""Weights are tenths."""
UNIFORM = 0.01
"""Of a neighbour method's probability, the share that all items have alike: from 0.001 to 0.3 changed nothing."""

Scores = Callable[[np.ndarray], np.ndarray]
"""From a batch of sessions, int32 [B] with their number in empty places, to float32 [B, n_items + 1]."""


NEITHER = "neither a model nor a run of `neighbors`, so its rankings cannot be fused"

Weights = tuple[float, ...]
"""One of each run; their sum is 1."""


class Source(NamedTuple):
    """One run, ready to score the sessions of one part."""

    scores: Scores
    log_probabilities: Callable[[np.ndarray], np.ndarray]
    """Of a batch's scores without column 0."""


class Batch(NamedTuple):
    """Sessions of a part, what each run gives their items, and what `metrics.rank_targets` takes."""

    sessions: np.ndarray
    lists: list[np.ndarray]
    targets: np.ndarray
    rows: np.ndarray
    seen: np.ndarray


def fused_test_ranks(runs: Sequence[tuple[Path, SessionDataset]], console: Console | None = None) -> np.ndarray:
    """Ranks of the test targets in the reciprocal rank fusion of several runs: int32 [n_test, 2], see `metrics`.

    Args:
      runs: each with its dataset; the test sets are the same.
      console: where progress is shown.

    Raises:
      InputError: a run can rank nothing, or is not of its dataset.
    """
    test = runs[0][1].test
    sources = [open_test(path, dataset) for path, dataset in runs]
    ranks = np.zeros((len(test), 2), np.int32)
    for batch in _batches(test, sources, "fused sessions", console):
        ranks[batch.sessions] = fused_ranks(batch.lists, batch.targets, batch.rows, batch.seen)
    return ranks


def pooled_test_ranks(
    runs: Sequence[tuple[Path, SessionDataset]], console: Console | None = None
) -> tuple[np.ndarray, Weights]:
    """The same of the logarithmic pool of several runs, and their weights.

    Of `all_weights` they are those with the best MRR@20, seen items excluded, on the first run's validation rows.

    Raises:
      InputError: as `fused_test_ranks`, or a run held no validation sessions out, or not the first one's.
    """
    valid, sources = open_validation(runs)
    tried = all_weights(len(runs))
    scored = pooled_ranks(valid, sources, tried, "validation sessions", console)
    best = tried[int(np.argmax([summarise(ranks)["exclude_seen"]["mrr@20"] for ranks in scored]))]
    sources = [open_test(path, dataset) for path, dataset in runs]
    (ranks,) = pooled_ranks(runs[0][1].test, sources, [best], "fused sessions", console)
    return ranks, best


def all_weights(runs: int) -> list[Weights]:
    """Every way to share out tenths among the runs."""
    shares = itertools.product(range(STEPS + 1), repeat=runs)
    return [tuple(tenths / STEPS for tenths in of_runs) for of_runs in shares if sum(of_runs) == STEPS]


def pooled_ranks(
    part: Split,
    sources: Sequence[Source],
    weights: Sequence[Weights],
    what: str = "sessions",
    console: Console | None = None,
) -> list[np.ndarray]:
    """Ranks int32 [n, 2] of the part's targets in the pool of the runs, for each choice of weights."""
    ranks = [np.zeros((len(part), 2), np.int32) for _ in weights]
    for batch in _batches(part, sources, what, console):
        pairs = zip(sources, batch.lists, strict=True)
        of_runs = [source.log_probabilities(scores[:, 1:]) for source, scores in pairs]
        pooled = np.zeros(batch.lists[0].shape, np.float32)
        for of_weights, chosen in zip(ranks, weights, strict=True):
            # Not a matrix product, which adds up alike columns differently, by their place: ties would be none.
            pooled[:, 1:] = sum(weight * of_run for weight, of_run in zip(chosen, of_runs, strict=True))
            of_weights[batch.sessions] = rank_targets(pooled, batch.targets, batch.rows, batch.seen)
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
    shares = np.zeros((len(lists), *lists[0].shape))
    for of_run, scores in zip(shares, lists, strict=True):
        of_run[:, 1:] = 1 / (K + rankdata(-scores[:, 1:], method="max", axis=1))
    shares.sort(axis=0)  # three sum to another number in another order: items whose places change runs are a tie
    return shares.sum(axis=0)


def smoothed(scores: np.ndarray) -> np.ndarray:
    """log q of a neighbour method's scores [B, n_items], none below 0: their shares, and `UNIFORM` for all alike."""
    total = scores.sum(axis=1, keepdims=True)
    shares = np.divide(scores, total, out=np.full(scores.shape, 1 / scores.shape[1], scores.dtype), where=total > 0)
    return np.log((1 - UNIFORM) * shares + UNIFORM / scores.shape[1])


def open_test(run: Path, dataset: SessionDataset) -> Source:
    """What scores the dataset's test sessions as a run does: its model, or its neighbour method fitted again.

    Raises:
      InputError: the run has neither, or is another dataset's.
    """
    if _is_model(run):
        loaded = load_run(run, dataset.path)
        return _model_source(loaded.scorer("test", loaded.read_intents()), loaded)
    return _neighbors(run, dataset, dataset.sessions, dataset.test)


def open_validation(runs: Sequence[tuple[Path, SessionDataset]]) -> tuple[Split, list[Source]]:
    """The first run's validation rows, and what scores them as each run does.

    Raises:
      InputError: as `pooled_test_ranks`.
    """
    held = [_held_out(path, dataset) for path, dataset in runs]
    (first, its_dataset), (valid, earlier) = runs[0], held[0]
    sources = []
    for (path, dataset), (_, sessions) in zip(runs, held, strict=True):
        pairs = (sessions.items, earlier.items), (sessions.offsets, earlier.offsets)
        if not all(np.array_equal(its, due) for its, due in pairs):
            raise InputError(f"{path}: its training sessions are not those of {first}, so no validation is left")
        if not _is_model(path):
            sources.append(_neighbors(path, dataset, earlier, valid))
            continue
        run = load_run(path, dataset.path)
        intents = run.read_intents()
        if intents is not None and dataset.hash != its_dataset.hash:
            raise InputError(f"{path}: its intents are of other rows than those of {first}; give it as --run")
        rows = np.arange(len(dataset.train) - len(valid), len(dataset.train))
        read = None if intents is None else intent_rows(intents.train, intents.embeddings, rows)
        sources.append(_model_source(Scorer(run.program, valid, run.settings.n_positions, read), run))
    return valid, sources


def _held_out(run: Path, dataset: SessionDataset) -> tuple[Split, Sessions]:
    """The run's validation rows, and the whole sessions it was fitted to."""
    about = _config(run)
    fraction = about.get("validation_fraction")
    if _is_model(run) and fraction is not None:
        config = from_mapping(TrainConfig, about, source=run / "config.yaml")
        fraction = config.validation_fraction if config.protocol == "default" else None
    if not _is_model(run) and str(about.get("model")) not in METHODS:
        raise InputError(f"{run}: {NEITHER}")
    if not isinstance(fraction, float):
        raise InputError(f"{run}: was fitted to all training sessions, so none are left to choose a weight on")
    return validation_split(dataset, fraction)[1:]


def _config(run: Path) -> dict[str, Any]:
    """``config.yaml``; nothing where there is none."""
    return read_yaml(run / "config.yaml") if (run / "config.yaml").is_file() else {}


def _is_model(run: Path) -> bool:
    return (run / "model.json").is_file()


def _model_source(scorer: Scorer, run: Run) -> Source:
    return Source(lambda batch: scorer.logits(run.params, batch), lambda logits: log_softmax(logits, axis=1))


def _neighbors(run: Path, dataset: SessionDataset, sessions: Sessions, part: Split) -> Source:
    """A neighbour method with the run's settings, fitted to ``sessions``, for the rows of ``part``."""
    about = _config(run)
    method = METHODS.get(str(about.get("model")))
    settings = {name: about.get(name) for name in method.grid} if method else {}
    if method is None or not all(isinstance(value, int | float) for value in settings.values()):
        raise InputError(f"{run}: {NEITHER}")
    score = method.fit(sessions, dataset.n_items, **settings)
    return Source(lambda batch: score(take(part, np.minimum(batch, len(part) - 1))), smoothed)


def _batches(part: Split, sources: Sequence[Source], what: str, console: Console | None) -> Iterator[Batch]:
    """All rows of a part, with each run's scores."""
    n = len(part)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(what, total=n)
        for batch in fixed_order(build_graphs(part), min(BATCH, n)):
            real = batch < n
            sessions = batch[real]
            clicks = take(part, sessions)
            rows = np.repeat(np.arange(len(sessions)), clicks.lengths)
            lists = [np.asarray(source.scores(batch))[real] for source in sources]
            yield Batch(sessions, lists, np.asarray(part.targets)[sessions], rows, np.asarray(clicks.items))
            bar.advance(task, len(sessions))
