"""``python -m dmsrec_jax.candidates``: the candidate sets C_t of eq. (2), for every training and test session."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.progress import Progress

from dmsrec_jax import cli
from dmsrec_jax.artifacts import write_candidates
from dmsrec_jax.config import CandidatesConfig
from dmsrec_jax.data import Split
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import check_replaceable
from dmsrec_jax.runs import load_run


def candidates(config: CandidatesConfig) -> None:
    """Writes ``train_candidates.npy`` and ``test_candidates.npy``."""
    console = Console(markup=False, highlight=False)
    check_replaceable(config.out, marker="candidates.json", overwrite=config.overwrite)  # before the scoring
    run = load_run(config.run, config.dataset)
    room = run.dataset.n_items
    if config.exclude_seen:
        room -= run.dataset.longest
    if not 1 <= config.k <= room:
        raise InputError(f"--k {config.k}: 1 to {room} items can be had")

    parts = {"train": run.dataset.train, "test": run.dataset.test}
    scorers = {name: run.scorer(name, config.intents) for name in parts}

    def top(name: str, part: Split) -> np.ndarray:
        with Progress(console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(f"{name} sessions", total=len(part))
            return scorers[name].top(
                run.params, config.k, exclude_seen=config.exclude_seen, progress=lambda n: bar.advance(task, n)
            )

    found = {name: top(name, part) for name, part in parts.items()}
    write_candidates(config.out, found, run.dataset, overwrite=config.overwrite)
    for name, part in parts.items():
        hit = 100 * np.mean((found[name] == np.asarray(part.targets)[:, None]).any(1))
        console.print(f"{name}: {len(part):,} sessions, target among the {config.k} in {hit:.2f} %")
    console.print(f"candidates: {config.out}")


def main(argv: Sequence[str] | None = None) -> None:
    cli.run(candidates, CandidatesConfig, argv, prog="python -m dmsrec_jax.candidates")


if __name__ == "__main__":
    main()
