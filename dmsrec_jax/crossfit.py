"""Cross-fitting: the items of training sessions ranked by models that never saw these sessions.

A model ranks the targets it was trained on far higher than a test session's. Here the training sessions are cut into
folds, and each fold is ranked by a model trained anew on all others (out-of-fold prediction; Wolpert 1992, Stacked
generalization). Finished folds are kept beside the result, so that a killed command goes on where it was:

    folds.json     what decides the result: the run by hash, its epochs, the folds, k
    fold-I.npy     int32 [rows of fold I, k]
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from dmsrec_jax.cli import from_mapping, read_yaml
from dmsrec_jax.config import TrainConfig
from dmsrec_jax.data.splits import chain_folds, hold_out
from dmsrec_jax.epochs import EpochProgram
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import read_json, read_npy, sha256, staged_folder, write_json, write_npy
from dmsrec_jax.parallel import Devices
from dmsrec_jax.recipe import check_flags, hyper, item_graph
from dmsrec_jax.results import read_results
from dmsrec_jax.runs import Run, new_model
from dmsrec_jax.scoring import Scorer
from dmsrec_jax.steps import ModelProgram, TrainState, initial_state


class Plan(NamedTuple):
    """How each fold's model is trained, and what is asked of it."""

    config: TrainConfig
    """The run's own settings."""
    epochs: int
    """The run's best epoch: a fold has no validation to choose its own."""
    folds: int
    k: int
    exclude_seen: bool


def plan(run: Run, folds: int, k: int, exclude_seen: bool) -> Plan:
    """Reads from a run folder how its folds are to be trained.

    Raises:
      InputError: the run was not trained by `train`, or is fused.
    """
    if run.settings.semantics:
        raise InputError(
            f"--cross-fit {run.path}: a fused run; its intents were read with its sessions' targets in view"
        )
    results = read_results(run.path) if (run.path / "results.json").is_file() else {}
    epochs = results.get("best_epoch")
    if not isinstance(epochs, int) or epochs < 1:
        raise InputError(f"--cross-fit {run.path}: not a finished run of `train`, so there are no settings to train by")
    config = from_mapping(TrainConfig, read_yaml(run.path / "config.yaml"), source=run.path / "config.yaml")
    check_flags(config)
    return Plan(config, epochs, folds, k, exclude_seen)


def cross_fitted(run: Run, plan: Plan, kept: Path, console: Console, *, overwrite: bool = False) -> np.ndarray:
    """The best k items of each training session, from a model that did not see its chain: int32 [n_train, k].

    Args:
      run: whose settings are used; its parameters are not.
      plan: of this run.
      kept: folder of finished folds; the caller removes it.
      console: where progress is shown.
      overwrite: whether folds that were begun otherwise may be replaced.

    Raises:
      InputError: ``kept`` holds other folds, there are too few chains, or training diverges.
    """
    fold = chain_folds(run.dataset.train, plan.folds, plan.config.seed)
    _open(kept, _identity(run, plan), overwrite)
    found = np.zeros((len(fold), plan.k), np.int32)
    folds = Folds(run, plan, [np.flatnonzero(fold == number) for number in range(plan.folds)], console)
    for number, mine in enumerate(folds.held):
        path = kept / f"fold-{number}.npy"
        if not path.is_file():
            started = time.perf_counter()
            console.print(f"fold {number + 1}/{plan.folds}: {len(mine):,} sessions held out")
            write_npy(path, folds.top(number))
            seconds = time.perf_counter() - started
            console.print(f"  {plan.epochs} epochs on {len(fold) - len(mine):,}, {seconds:.0f} s")
        found[mine] = _read(path, len(mine), plan.k)
    return found


class Folds:
    """The run's model, trained anew without each fold: all folds by the programs that the first one compiles."""

    def __init__(self, run: Run, plan: Plan, held: Sequence[np.ndarray], console: Console) -> None:
        """Compiles nothing yet.

        Args:
          run: its settings and, where it has them, its encoded titles.
          plan: of this run.
          held: training rows that each fold's model must not see, whole chains together.
          console: where progress is shown.
        """
        self.held = held
        self._run, self._plan, self._console = run, plan, console
        self._devices = Devices(1, plan.config.batch_size)
        self._programs: tuple[EpochProgram, Scorer] | None = None

    def top(self, number: int) -> np.ndarray:
        """The best k items of a fold's sessions, int32 [rows, k], by a model that saw all others.

        Raises:
          InputError: the loss is not finite.
        """
        config, plan = self._plan.config, self._plan
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        init_key, dropout_key, order_key = jax.random.split(key, 3)
        graph = item_graph(config, self._run.dataset, hold_out(self._run.dataset, self.held[number]))
        program, params = new_model(self._run.settings, graph, init_key, self._run.item_text)
        state = self._devices.put(initial_state(params, hyper(config), dropout_key), donated=True)
        epochs, scorer = self._programs = self._programs or self._compile(program, order_key, state)
        epochs.take_up(number, program.constants, order_key)
        for epoch in range(plan.epochs):
            state, loss = epochs.run(state, epoch)
            if not math.isfinite(loss):
                raise InputError(f"--cross-fit: fold {number + 1}, epoch {epoch + 1}: the loss is {loss}")
        return scorer.top(
            self._devices.get(state).params,
            plan.k,
            exclude_seen=plan.exclude_seen,
            progress=lambda _: None,
            constants=program.constants,
            part=number,
        )

    def _compile(self, program: ModelProgram, key: jax.Array, state: TrainState) -> tuple[EpochProgram, Scorer]:
        config, rows, held = self._plan.config, self._run.dataset.train, self.held
        left = [np.setdiff1d(np.arange(len(rows)), mine) for mine in held]
        where, console, limit = self._devices, self._console, config.device_data_mb
        epochs = EpochProgram(rows, config.batch_size, program, where, key, console, None, limit, left)
        epochs.compile(state)  # else twice: for a first state, and for one that steps return
        return epochs, Scorer(program, rows, self._run.settings.n_positions, None, limit, held)


def _identity(run: Run, plan: Plan) -> dict[str, Any]:
    hashes = {name: sha256(run.path / name) for name in ("model.json", "config.yaml")}
    return hashes | {"epochs": plan.epochs, "cross_fit": plan.folds, "k": plan.k, "exclude_seen": plan.exclude_seen}


def _open(kept: Path, identity: dict[str, Any], overwrite: bool) -> None:
    """Makes the folder of finished folds ready, or checks that it is of the same run and settings."""
    if kept.exists():
        begun = read_json(kept / "folds.json")
        begun = begun if isinstance(begun, dict) else {}
        other = [name for name, value in identity.items() if begun.get(name) != value]
        if not other:
            return
        if not overwrite:
            raise InputError(f"{kept}: begun with another {other[0]}; give --overwrite to begin anew")
    with staged_folder(kept, marker="folds.json", overwrite=overwrite) as staged:
        write_json(staged / "folds.json", identity)


def _read(path: Path, rows: int, k: int) -> np.ndarray:
    top = read_npy(path, dtype=np.int32, ndim=2)
    if top.shape != (rows, k):
        raise InputError(f"{path}: shape {top.shape} where {(rows, k)} is due; remove it")
    return top
