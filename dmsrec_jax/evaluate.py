"""``python -m dmsrec_jax.evaluate``: a run's metrics with intervals, its differences from and fusion with another."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dmsrec_jax.cli import run
from dmsrec_jax.config import EvaluateConfig
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import check_replaceable, read_json, staged_folder
from dmsrec_jax.metrics import by_view, summarise
from dmsrec_jax.results import (
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
    write_ranks,
    write_results,
)


def evaluate(config: EvaluateConfig, console: Console | None = None) -> None:
    """Prints a run's results and adds intervals (and differences) to its ``results.json``.

    A run without ranks, such as an imported model, is scored first. Of a run trained with ``--protocol paper`` the
    metrics stay as training wrote them, the best epoch of each on the test set; its intervals and differences come from
    the ranks of the one epoch that was kept.

    Raises:
      InputError: a flag is out of range, a folder is no run, or the runs' test sets differ.
    """
    if config.bootstrap < 2:
        raise InputError(f"--bootstrap {config.bootstrap}: at least 2 resamples are due")
    if config.out is not None and config.fuse is None:
        raise InputError(f"--out {config.out}: needs --fuse")
    if config.fuse_by != "ranks" and config.fuse is None:
        raise InputError(f"--fuse-by {config.fuse_by}: needs --fuse")
    if config.fuse is not None and config.compare is not None:
        raise InputError(f"--compare {config.compare}: not beside --fuse; compare the run that --out writes")
    if config.out is not None:  # before the scoring
        check_replaceable(config.out, marker="results.json", overwrite=config.overwrite)
    about = _about(config.run)
    dataset = dataset_of(config.run, about, SessionDataset.load(config.dataset or Path(about["dataset"]["path"])))
    name = config.run.resolve().name
    own = percent(_ranks(config.run, dataset))
    if about.get("protocol") != "paper":
        about["test"] = by_view(own.mean(axis=0))
    about["intervals"] = intervals(own, dataset, config)
    if config.compare is not None:
        other = _about(config.compare)
        difference = own - percent(_ranks(config.compare, dataset_of(config.compare, other, dataset)))
        about.setdefault("differences", {})[str(config.compare)] = differences(difference, dataset, config)
    write_results(config.run, about)

    if config.fuse is not None:
        _fuse(config, config.fuse, about, own, dataset, console)
        return
    print_results({name: about}, console)
    if config.compare is not None:
        title = f"{label(name, about)} − {label(config.compare.resolve().name, other)}"
        print_differences(title, about["differences"][str(config.compare)], console)


def _fuse(
    config: EvaluateConfig,
    second: Path,
    about: dict[str, Any],
    own: np.ndarray,
    dataset: SessionDataset,
    console: Console | None,
) -> None:
    """Prints both runs and their fusion, with its differences from each; writes the fusion where --out says."""
    from dmsrec_jax.ensemble import K, fused_test_ranks, pooled_test_ranks  # brings in jax

    other = _about(second)
    data = dataset_of(second, other, dataset)
    others = percent(_ranks(second, data))
    if other.get("protocol") != "paper":
        other["test"] = by_view(others.mean(axis=0))
    other["intervals"] = intervals(others, dataset, config)
    if config.fuse_by == "scores":
        ranks, weight = pooled_test_ranks((config.run, dataset), (second, data), console)
        kind, setting = "pool", {"weight": weight}
    else:
        ranks = fused_test_ranks(((config.run, dataset), (second, data)), console)
        kind, setting = "rrf", {"k": K}
    values = percent(ranks)
    names = [path.resolve().name for path in (config.run, second)]
    if names[0] == names[1]:
        names = [str(config.run), str(second)]
    fusion: dict[str, Any] = {
        "test": summarise(ranks),
        "protocol": "paper" if "paper" in (about.get("protocol"), other.get("protocol")) else "default",
        "model": f"{kind}({about['model']}, {other['model']})",
        "dataset": dataset_identity(dataset),
        "fused": [str(path.absolute()) for path in (config.run, second)],
        **setting,
        "intervals": intervals(values, dataset, config),
        "differences": {
            str(path): differences(values - of_path, dataset, config)
            for path, of_path in ((config.run, own), (second, others))
        },
    }
    if config.out is not None:
        with staged_folder(config.out, marker="results.json", overwrite=config.overwrite) as staged:
            write_ranks(staged, ranks)
            write_results(staged, fusion)
    name = f"{kind}({', '.join(names)})"
    print_results({names[0]: about, names[1]: other, name: fusion}, console)
    if "weight" in fusion:
        (console or Console()).print(f"weight of {names[1]}: {fusion['weight']:.1f}, chosen on validation")
    for path, of_run, compared in ((config.run, about, names[0]), (second, other, names[1])):
        print_differences(f"fusion − {label(compared, of_run)}", fusion["differences"][str(path)], console)


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
