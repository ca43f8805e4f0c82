"""What a report says, as numbers: runs, their intervals and differences, hit rates by kind of session."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dmsrec_jax.artifacts import KINDS, PARTS, Intents
from dmsrec_jax.cli import from_mapping, read_yaml
from dmsrec_jax.config import ReportConfig, TrainConfig
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import read_json, sha256
from dmsrec_jax.metrics import VIEWS, hit_rate
from dmsrec_jax.recipe import HOW_IT_RUNS, hyper
from dmsrec_jax.results import dataset_of, is_by_view, is_number, label, read_ranks, read_results, run_names
from dmsrec_jax.runs import intents_hash

GROUPS = 6
"""Most groups that sessions are put into by their length, or by their target's popularity."""

Views = Mapping[str, Mapping[str, Any]]
"""``{"raw": {"hr@5": …}, "exclude_seen": {…}}``."""


class JudgedRun(NamedTuple):
    """A run folder, read."""

    name: str
    """See `run_names`."""
    path: Path
    dataset: SessionDataset
    """The report's, or its own one with the same test set."""
    results: dict[str, Any]
    settings: dict[str, Any]
    """Of its config.yaml."""
    history: list[dict[str, Any]]
    """Of its metrics.jsonl; empty where there is none."""
    ranks: np.ndarray
    """int32 [n_test, 2]: see `metrics`."""

    @property
    def is_trained(self) -> bool:
        """Whether it holds a model."""
        return (self.path / "model.json").is_file()

    @property
    def provenance(self) -> dict[str, Any]:
        """What made the intents of a fused run."""
        return (self.results.get("intents") or {}).get("provenance", {})

    @property
    def engine(self) -> str | None:
        """What named the intents of a fused run, such as "no LLM (retrieval)"; None for any other run."""
        if not self.results.get("intents"):
            return None
        made = self.provenance
        return str(made.get("engine_label") or made.get("engine") or "unknown engine")

    @property
    def is_placebo(self) -> bool:
        """Whether its intents were made by `placebo`."""
        return "placebo" in self.provenance

    @property
    def label(self) -> str:
        """Its name as printed: with the engine, and a † where results were selected on the test set."""
        return label(self.name, self.results) + (f" [{self.engine}]" if self.engine else "")


class Groups(NamedTuple):
    """Test sessions by how much of something they have."""

    names: list[str]
    """Such as "1", "2–3", "≥ 10"."""
    of: np.ndarray
    """int [n_test], the group of each session."""


class Sweep(NamedTuple):
    """What runs vary in while all else but the seed is equal."""

    name: str
    """The paper's figure."""
    keys: tuple[str, ...]
    """The settings, as printed."""
    places: list[tuple[Any, ...]]
    """Their values, ascending."""
    scores: list[dict[str, float]]
    """Of each place the metrics with seen items excluded, in percent, means over runs."""
    runs: list[int]
    """Of each place, how many."""


SWEEPS = {
    "Figure 4: alignments": {"align": "alignment"},
    "Figure 5: weight of the alignment": {"align_weight": "λ"},
    "Figure 6: weights of explicit and latent intents": {"alpha": "α", "beta": "β"},
}
"""The paper's figures, and the settings that vary in them with their names there."""
FREE = HOW_IT_RUNS | {"seed", "dataset", "intents", "item_text"}
"""Settings in which runs of one sweep may differ; what they read is compared by hash."""


def read_runs(config: ReportConfig) -> tuple[SessionDataset, list[JudgedRun]]:
    """Reads the runs, and the first one's dataset, whose test set all share.

    Raises:
      InputError: there is no run, one has no results or ranks or damaged ones, or their test sets differ.
    """
    if not config.runs:
        raise InputError("RUNS: at least one run folder is due")
    dataset, runs = None, []
    for path, name in zip(config.runs, run_names(config.runs), strict=True):
        if (path / "model.json").is_file() and not (path / "results.json").is_file():
            raise InputError(f"{path}: has no results yet; python -m dmsrec_jax.evaluate --run {path} makes them")
        results = read_results(path)
        if dataset is None:
            dataset = SessionDataset.load(config.dataset or Path(results["dataset"]["path"]))
        own = dataset_of(path, results, dataset)
        settings = read_yaml(path / "config.yaml") if (path / "config.yaml").is_file() else {}
        history = _history(path / "metrics.jsonl")
        if history and results.get("best_epoch", 1) > len(history):
            wrong = f"best_epoch {results['best_epoch']}: metrics.jsonl has {len(history)} epochs"
            raise InputError(f"{path / 'results.json'}: {wrong}")
        runs.append(JudgedRun(name, path, own, results, settings, history, read_ranks(path, len(dataset.test))))
    assert dataset is not None
    return dataset, runs


def _history(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        history = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    for number, entry in enumerate(history, start=1):
        if not _is_epoch(entry) or ("validation" in entry) != ("validation" in history[0]):
            raise InputError(f"{path}: line {number} is not an epoch of `train`")
    return history


def _is_epoch(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and all(is_number(entry.get(key)) for key in ("epoch", "loss"))
        and is_by_view(entry.get("validation", entry.get("test")))
    )


def published(dataset: str, backbones: Sequence[str]) -> tuple[str, list[dict[str, Any]]]:
    """The paper's title, and its rows of Tables 2 and 3 for a data set (by name) and backbones, in percent."""
    paper = read_json(Path(__file__).with_name("published.json"))
    rows = [row for backbone in backbones for row in paper.get(dataset, {}).get(backbone, [])]
    return paper["source"], rows


def by_length(dataset: SessionDataset) -> Groups:
    """Test sessions by their clicks."""
    return groups(np.asarray(dataset.test.lengths))


def by_popularity(dataset: SessionDataset) -> Groups:
    """Test sessions by how often their target was clicked in the training sessions."""
    clicks = np.bincount(dataset.sessions.items, minlength=dataset.n_items + 1)
    return groups(clicks[dataset.test.targets])


def groups(values: np.ndarray, most: int = GROUPS) -> Groups:
    """Puts non-negative whole numbers, int [n], into at most ``most`` ranges that hold about equally many of them."""
    starts = np.unique(np.quantile(values, np.arange(most) / most, method="higher"))
    starts[0] = values.min()
    ends = [*(starts[1:] - 1), values.max()]
    names = [
        f"≥ {start}" if start == starts[-1] and end > start else str(start) if start == end else f"{start}–{end}"
        for start, end in zip(starts, ends, strict=True)
    ]
    return Groups(names, np.searchsorted(starts, values, side="right") - 1)


def hit_rates(run: JudgedRun, of: Groups, k: int = 20) -> np.ndarray:
    """HR@k of each group in percent, seen items excluded: float64 [groups]."""
    hits = hit_rate(run.ranks[:, VIEWS.index("exclude_seen")], k)
    return 100 * np.bincount(of.of, hits, len(of.names)) / np.bincount(of.of, minlength=len(of.names))


def intents_folder(run: JudgedRun) -> Path | None:
    """The intents a fused run was trained with; None where they have moved or others are in their place."""
    about = Path(run.results["intents"]["path"]) / "meta.json"
    due = intents_hash(read_json(run.path / "model.json")) if run.is_trained else None
    return about.parent if about.is_file() and due in (None, sha256(about)) else None


def intent_counts(intents: Intents) -> dict[str, dict[str, np.ndarray]]:
    """By part and kind, how many sessions have 0, 1, 2, … intents."""
    return {
        part: {kind: np.bincount(np.diff(getattr(getattr(intents, part), kind).offsets)) for kind in KINDS}
        for part in PARTS
    }


def sweeps(runs: Sequence[JudgedRun]) -> list[Sweep]:
    """The paper's Figures 4 to 6, where fused runs vary in what those show, and in nothing else."""
    fused = [
        (
            from_mapping(TrainConfig, run.settings, source=run.path / "config.yaml"),
            read_json(run.path / "model.json").get("inputs"),
            run.results["test"]["exclude_seen"],
        )
        for run in runs
        if run.engine and run.is_trained and "backbone" in run.settings
    ]
    found = []
    for name, settings in SWEEPS.items():
        alike: dict[str, dict[tuple[Any, ...], dict[int, Mapping[str, float]]]] = {}  # a run of two plans counts once
        for config, inputs, score in fused:
            rest = {key: value for key, value in asdict(config).items() if key not in {*settings, *FREE}}
            at = alike.setdefault(json.dumps([rest, inputs], sort_keys=True, default=str), {})
            at.setdefault(tuple(_setting(config, key) for key in settings), {})[config.seed] = score
        for at in alike.values():
            if len(at) > 1:
                places = sorted(at)
                scores, counts = (
                    [_mean([*at[place].values()]) for place in places],
                    [len(at[place]) for place in places],
                )
                found.append(Sweep(name, tuple(settings.values()), places, scores, counts))
    return found


def _setting(config: TrainConfig, key: str) -> Any:
    # λ may be left to the semantics.
    return hyper(config).align_weight if key == "align_weight" else getattr(config, key)


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {metric: float(np.mean([score[metric] for score in scores])) for metric in scores[0]}
