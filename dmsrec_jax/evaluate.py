"""``python -m dmsrec_jax.evaluate``: a run's metrics with intervals, and its differences from a second run."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dmsrec_jax.bootstrap import chain_bootstrap, interval
from dmsrec_jax.cli import run
from dmsrec_jax.config import EvaluateConfig
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import read_json
from dmsrec_jax.metrics import by_view, contributions
from dmsrec_jax.results import (
    label,
    print_differences,
    print_results,
    read_ranks,
    read_results,
    write_ranks,
    write_results,
)


def evaluate(config: EvaluateConfig, console: Console | None = None) -> None:
    """Prints a run's results and adds intervals (and differences) to its ``results.json``.

    A run without ranks, such as an imported model, is scored first. Of a run trained with ``--protocol paper`` the
    metrics stay as training wrote them, the best epoch of each on the test set; its intervals and differences come from
    the ranks of the one epoch that was kept.

    Raises:
      InputError: a flag is out of range, a folder is no run, or the runs belong to different data sets.
    """
    if config.bootstrap < 2:
        raise InputError(f"--bootstrap {config.bootstrap}: at least 2 resamples are due")
    about = _about(config.run)
    dataset = SessionDataset.load(config.dataset or Path(about["dataset"]["path"]))
    name = config.run.resolve().name
    own = _percent(_ranks(config.run, about, dataset))
    if about.get("protocol") != "paper":
        about["test"] = by_view(own.mean(axis=0))
    about["intervals"] = by_view(_intervals(own, dataset, config))
    if config.compare is not None:
        other = _about(config.compare)
        difference = own - _percent(_ranks(config.compare, other, dataset))
        rows = np.concatenate([difference.mean(axis=0)[:, None], _intervals(difference, dataset, config)], axis=1)
        about.setdefault("differences", {})[str(config.compare)] = by_view(rows)
    write_results(config.run, about)

    print_results({name: about}, console)
    if config.compare is not None:
        title = f"{label(name, about)} − {label(config.compare.resolve().name, other)}"
        print_differences(title, about["differences"][str(config.compare)], console)


def _about(run: Path) -> dict[str, Any]:
    """``results.json``, or for a model that has none yet what ``model.json`` knows."""
    if (run / "results.json").is_file() or not (run / "model.json").is_file():
        return read_results(run)
    model = read_json(run / "model.json")
    try:
        dataset = {key: str(model["dataset"][key]) for key in ("path", "name", "hash")}
        return {"protocol": "default", "model": str(model["settings"]["backbone"]), "dataset": dataset}
    except (KeyError, TypeError):
        raise InputError(f"{run / 'model.json'}: not the description of a model") from None


def _ranks(run: Path, about: dict[str, Any], dataset: SessionDataset) -> np.ndarray:
    """The run's test ranks, int32 [n_test, 2]; scored and written where it has none."""
    if about["dataset"]["hash"] != dataset.hash:
        raise InputError(f"{run}: a run on another dataset ({about['dataset']['path']}) than {dataset.path}, by hash")
    if (run / "ranks.npy").is_file():
        return read_ranks(run, len(dataset.test))
    from dmsrec_jax.runs import load_run  # brings in jax, which stored ranks do not need

    ranks = load_run(run, dataset.path).score_test()
    write_ranks(run, ranks)
    return ranks


def _percent(ranks: np.ndarray) -> np.ndarray:
    return 100 * contributions(ranks)


def _intervals(values: np.ndarray, dataset: SessionDataset, config: EvaluateConfig) -> np.ndarray:
    means = chain_bootstrap(values, dataset.test.chains, resamples=config.bootstrap, seed=config.seed)
    return interval(means)


if __name__ == "__main__":
    run(evaluate, EvaluateConfig, prog="python -m dmsrec_jax.evaluate")
