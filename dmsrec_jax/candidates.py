"""``python -m dmsrec_jax.candidates``: the candidate sets C_t of eq. (2), for every training and test session."""

import shutil
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.progress import Progress

from dmsrec_jax import cli
from dmsrec_jax.artifacts import write_candidates
from dmsrec_jax.config import CandidatesConfig
from dmsrec_jax.crossfit import cross_fitted, plan
from dmsrec_jax.data import Sessions
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import check_replaceable, sha256
from dmsrec_jax.runs import load_run


def candidates(config: CandidatesConfig) -> None:
    """Writes ``train_candidates.npy`` and ``test_candidates.npy``."""
    console = Console(markup=False, highlight=False)
    # before the scoring
    check_replaceable(config.out, marker="candidates.json", overwrite=config.overwrite, reads=[config.run])
    run = load_run(config.run, config.dataset)
    if config.intents is not None and not run.settings.semantics:
        raise InputError(f"--intents {config.intents}: {config.run} is a plain model, which reads none")
    room = run.dataset.n_items
    if config.exclude_seen:
        room -= max(most_distinct(run.dataset.train), most_distinct(run.dataset.test))
    if room < 1:
        raise InputError(f"--exclude-seen: a session holds all {run.dataset.n_items} items, so none is left for it")
    if not 1 <= config.k <= room:
        raise InputError(f"--k {config.k}: 1 to {room} items can be had")
    folds = None
    if config.cross_fit is not None:
        folds = plan(run, config.cross_fit, config.k, config.exclude_seen)
    intents = run.read_intents(config.intents)

    def top(part: str) -> np.ndarray:
        scorer = run.scorer(part, intents)
        with Progress(console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(f"{part} sessions", total=len(getattr(run.dataset, part)))
            return scorer.top(
                run.params, config.k, exclude_seen=config.exclude_seen, progress=lambda n: bar.advance(task, n)
            )

    out = config.out.resolve()
    kept = out.with_name(f"{out.name}.folds")
    found = {
        "train": cross_fitted(run, folds, kept, console, overwrite=config.overwrite) if folds else top("train"),
        "test": top("test"),
    }
    provenance = {
        "run": str(config.run.absolute()),
        "model": run.settings.backbone,
        "model_sha256": sha256(config.run / "model.json"),
        "exclude_seen": config.exclude_seen,
        "cross_fit": folds and {"folds": folds.folds, "epochs": folds.epochs, "seed": folds.config.seed},
    }
    write_candidates(config.out, found, run.dataset, provenance, overwrite=config.overwrite)
    if folds:
        shutil.rmtree(kept)
    for part, top_items in found.items():
        targets = getattr(run.dataset, part).targets
        hit = 100 * np.mean((top_items == np.asarray(targets)[:, None]).any(1))
        console.print(f"{part}: {len(targets):,} sessions, target among the {config.k} in {hit:.2f} %")
    console.print(f"candidates: {config.out}")


def most_distinct(sessions: Sessions) -> int:
    """How many different items a session holds at most."""
    lengths, most = sessions.lengths, 0
    for row in np.argsort(-lengths):
        if lengths[row] <= most:
            break
        most = max(most, len(np.unique(sessions[row])))
    return most


def main(argv: Sequence[str] | None = None) -> None:
    cli.run(candidates, CandidatesConfig, argv, prog="python -m dmsrec_jax.candidates")


if __name__ == "__main__":
    main()
