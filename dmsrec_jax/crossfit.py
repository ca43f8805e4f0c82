"""Cross-fitting: the items of training sessions ranked by models that never saw these sessions.

A model ranks the targets it was trained on far higher than a test session's. Here the training sessions are cut into
folds, and each fold is ranked by a model trained anew on all others (out-of-fold prediction; Wolpert 1992, Stacked
generalization). Finished folds are kept beside the result, so that a killed command goes on where it was:

    folds.json     what decides the result: the run by hash, its epochs, the folds, k
    fold-I.npy     int32 [rows of fold I, k]
"""

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from rich.console import Console

from dmsrec_jax.cli import from_mapping, read_yaml
from dmsrec_jax.config import TrainConfig
from dmsrec_jax.data import Sessions, Split
from dmsrec_jax.data.splits import chain_folds, hold_out
from dmsrec_jax.epochs import EpochProgram
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import read_json, read_npy, sha256, staged_folder, write_json, write_npy
from dmsrec_jax.parallel import Devices
from dmsrec_jax.recipe import check_flags, hyper, item_graph
from dmsrec_jax.results import read_results
from dmsrec_jax.runs import Run, new_model
from dmsrec_jax.scoring import Scorer
from dmsrec_jax.steps import ModelProgram, initial_state


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
    dataset = run.dataset
    fold = chain_folds(dataset.train, plan.folds, plan.config.seed)
    _open(kept, _identity(run, plan), overwrite)
    found = np.zeros((len(fold), plan.k), np.int32)
    for number in range(plan.folds):
        path = kept / f"fold-{number}.npy"
        mine = fold == number
        if not path.is_file():
            started = time.perf_counter()
            rows, held, sessions = hold_out(dataset, mine)
            console.print(f"fold {number + 1}/{plan.folds}: {len(held):,} sessions held out")
            program, params = fit(run, plan, rows, sessions, number, console)
            scorer = Scorer(program, held, run.settings.n_positions, None, plan.config.device_data_mb)
            top = scorer.top(params, plan.k, exclude_seen=plan.exclude_seen, progress=lambda _: None)
            write_npy(path, top)
            console.print(f"  {plan.epochs} epochs on {len(rows):,}, {time.perf_counter() - started:.0f} s")
        found[mine] = _read(path, int(mine.sum()), plan.k)
    return found


def fit(
    run: Run, plan: Plan, rows: Split, sessions: Sessions, number: int, console: Console
) -> tuple[ModelProgram, nnx.State]:
    """Trains the run's model anew, for a fixed number of epochs.

    Args:
      run: its settings and, where it has them, its encoded titles.
      plan: of this run.
      rows: what to train on.
      sessions: whole sessions of the same chains, for the global graph.
      number: the fold's, part of its seed.
      console: where progress is shown.

    Raises:
      InputError: the loss is not finite.
    """
    config, settings = plan.config, run.settings
    key = jax.random.fold_in(jax.random.key(config.seed), number)
    init_key, dropout_key, order_key = jax.random.split(key, 3)
    graph = item_graph(config, run.dataset, sessions)
    program, params = new_model(settings, graph, init_key, run.item_text)
    devices = Devices(1, config.batch_size)
    epochs = EpochProgram(
        rows, config.batch_size, program, devices, order_key, console, device_data_mb=config.device_data_mb
    )
    state = devices.put(initial_state(params, hyper(config), dropout_key))
    for epoch in range(plan.epochs):
        state, loss = epochs.run(state, epoch)
        if not math.isfinite(loss):
            raise InputError(f"--cross-fit: fold {number + 1}, epoch {epoch + 1}: the loss is {loss}")
    return program, devices.get(state).params


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
