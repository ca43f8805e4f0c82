"""``python -m dmsrec_jax.evaluate``: a run's metrics with intervals, its differences from and fusion with another."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from dmsrec_jax.cli import run
from dmsrec_jax.config import EvaluateConfig
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import check_replaceable, check_unlocked, locked, read_json, staged_folder
from dmsrec_jax.metrics import by_view, summarise
from dmsrec_jax.results import (
    check_bootstrap,
    check_no_model,
    dataset_identity,
    dataset_of,
    differences,
    intervals,
    label,
    percent,
    print_differences,
    print_results,
    read_ranks,
    read_results,
    run_names,
    write_ranks,
    write_results,
)

MOST_POOLED = 4
"""Runs, whose weights have 286 combinations."""


def evaluate(config: EvaluateConfig, console: Console | None = None) -> None:
    """Prints a run's results and adds intervals (and differences) to its ``results.json``.

    A run without ranks, such as an imported model, is scored first. Of a run trained with ``--protocol paper`` the
    metrics stay as training wrote them, the best epoch of each on the test set; its intervals and differences come from
    the ranks of the one epoch that was kept.

    Raises:
      InputError: a flag is out of range, a folder is no run or one that is being trained, or the runs' test sets
        differ.
    """
    check_bootstrap(config)
    if config.out is not None and not config.fuse:
        raise InputError(f"--out {config.out}: needs --fuse")
    if config.fuse_by != "ranks" and not config.fuse:
        raise InputError(f"--fuse-by {config.fuse_by}: needs --fuse")
    if config.fuse_by == "scores" and len(config.fuse) >= MOST_POOLED:
        raise InputError(f"--fuse-by scores: of at most {MOST_POOLED} runs, for all their weights are tried")
    paths = [path.resolve() for path in (config.run, *config.fuse)]
    twice = next((path for path in config.fuse if paths.count(path.resolve()) > 1), None)
    if twice is not None:
        raise InputError(f"--fuse {twice}: is given twice")
    if config.fuse and config.compare is not None:
        raise InputError(f"--compare {config.compare}: not beside --fuse; compare the run that --out writes")
    if config.out is not None:  # before the scoring
        runs = (config.run, *config.fuse)
        check_replaceable(config.out, marker="results.json", overwrite=config.overwrite, reads=runs)
        check_no_model(config.out, f"--out {config.out}:")
    check_unlocked(config.run)
    about = _about(config.run)
    judged = _judge(config.run, about, SessionDataset.load(config.dataset or Path(about["dataset"]["path"])), config)
    dataset = judged.dataset
    name, *of_other = run_names([config.run] if config.compare is None else [config.run, config.compare])
    if config.compare is not None:
        other = _about(config.compare)
        difference = judged.values - percent(_ranks(config.compare, dataset_of(config.compare, other, dataset)))
        about["differences"] = {str(config.compare): differences(difference, dataset, config)}
    _add_results(judged)

    if config.fuse:
        _fuse(config, judged, console)
        return
    print_results({name: about}, console)
    if config.compare is not None:
        title = f"{label(name, about)} − {label(of_other[0], other)}"
        print_differences(title, about["differences"][str(config.compare)], console)


def _add_results(judged: "_Judged") -> None:
    """Adds what is new to ``results.json`` as it is by now: others may have written there."""
    with locked(judged.path):
        now, about = _about(judged.path), judged.about
        if not np.array_equal(percent(_ranks(judged.path, judged.dataset)), judged.values):
            raise InputError(f"{judged.path}: was made anew in the meantime; evaluate it again")
        differences = now.get("differences", {}) | about.get("differences", {})
        now |= {key: about[key] for key in ("test", "intervals")}
        write_results(judged.path, now | ({"differences": differences} if differences else {}))


class _Judged(NamedTuple):
    """A run beside others on the same test set."""

    path: Path
    about: dict[str, Any]
    values: np.ndarray
    """Of its ranks, see `percent`."""
    dataset: SessionDataset


def _fuse(config: EvaluateConfig, first: _Judged, console: Console | None) -> None:
    """Prints the runs and their fusion, with its differences from each; writes the fusion where --out says."""
    from dmsrec_jax.ensemble import K, fused_test_ranks, pooled_test_ranks  # brings in jax

    runs = [first, *(_judge(path, _about(path), first.dataset, config) for path in config.fuse)]
    sources = [(run.path, run.dataset) for run in runs]
    names = run_names([run.path for run in runs])
    setting: dict[str, Any]
    if config.fuse_by == "scores":
        ranks, weights = pooled_test_ranks(sources, console)
        kind, setting = "pool", {"weights": list(weights)}
    else:
        ranks = fused_test_ranks(sources, console)
        kind, setting = "rrf", {"k": K}
    values = percent(ranks)
    fusion: dict[str, Any] = {
        "test": summarise(ranks),
        "protocol": "paper" if "paper" in [run.about.get("protocol") for run in runs] else "default",
        "model": f"{kind}({', '.join(str(run.about['model']) for run in runs)})",
        "dataset": dataset_identity(first.dataset),
        "fused": [str(run.path.absolute()) for run in runs],
        **setting,
        "intervals": intervals(values, first.dataset, config),
        "differences": {str(run.path): differences(values - run.values, first.dataset, config) for run in runs},
    }
    if config.out is not None:
        with staged_folder(config.out, marker="results.json", overwrite=config.overwrite) as staged:
            write_ranks(staged, ranks)
            write_results(staged, fusion)
    labelled = dict(zip(names, (run.about for run in runs), strict=True))
    print_results(labelled | {f"{kind}({', '.join(names)})": fusion}, console)
    if "weights" in fusion:
        chosen = ", ".join(f"{name} {weight:.1f}" for name, weight in zip(names, fusion["weights"], strict=True))
        (console or Console(markup=False)).print(f"weights, chosen on validation: {chosen}", soft_wrap=True)
    for name, of_run in zip(names, runs, strict=True):
        print_differences(f"fusion − {label(name, of_run.about)}", fusion["differences"][str(of_run.path)], console)


def _judge(run: Path, about: dict[str, Any], dataset: SessionDataset, config: EvaluateConfig) -> _Judged:
    """A run on the test set of ``dataset``; completes ``about``, what `_about` knows of it."""
    its = dataset_of(run, about, dataset)
    values = percent(_ranks(run, its))
    if about.get("protocol") != "paper":
        about["test"] = by_view(values.mean(axis=0))
    about["intervals"] = intervals(values, its, config)
    return _Judged(run, about, values, its)


def _about(run: Path) -> dict[str, Any]:
    """``results.json``, or for a model that has none yet what ``model.json`` knows."""
    if (run / "results.json").is_file() or not (run / "model.json").is_file():
        return read_results(run)
    if (run / "metrics.jsonl").is_file():
        raise InputError(f"{run}: its training has not come to its end; the same command with --resume goes on")
    model = read_json(run / "model.json")
    try:
        dataset = {key: str(model["dataset"][key]) for key in ("path", "name", "hash")}
        return {"protocol": "default", "model": str(model["settings"]["backbone"]), "dataset": dataset}
    except (KeyError, TypeError):
        raise InputError(f"{run / 'model.json'}: not the description of a model") from None


def _ranks(run: Path, dataset: SessionDataset) -> np.ndarray:
    """The run's test ranks, int32 [n_test, 2]; scored and written where it has none."""
    if (run / "ranks.npy").is_file():
        return read_ranks(run, len(dataset.test))
    from dmsrec_jax.runs import load_run  # brings in jax, which stored ranks do not need

    ranks = load_run(run, dataset.path).score_test()
    write_ranks(run, ranks)
    return ranks


if __name__ == "__main__":
    run(evaluate, EvaluateConfig, prog="python -m dmsrec_jax.evaluate")
