"""``python -m dmsrec_jax.train``: the story of a run, from sessions to scored test set."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dmsrec_jax import cli
from dmsrec_jax.checkpoint import Checkpoints
from dmsrec_jax.config import TrainConfig
from dmsrec_jax.data import SessionDataset, Split
from dmsrec_jax.data.demo import demo_dataset
from dmsrec_jax.epochs import EpochProgram
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import check_no_file, check_unlocked, locked, read_json, staged_folder
from dmsrec_jax.graphs import IntentRows
from dmsrec_jax.history import (
    History,
    best_epoch,
    epoch_line,
    is_stale,
    summary_writer,
    write_metrics,
    write_tensorboard,
)
from dmsrec_jax.metrics import summarise
from dmsrec_jax.model import ModelSettings
from dmsrec_jax.outcome import Trained, check_same_settings, epoch_entry, kept_settings, write_outcome
from dmsrec_jax.parallel import Devices, split_cpu
from dmsrec_jax.recipe import (
    Inputs,
    Parts,
    check_flags,
    hyper,
    item_graph,
    model_settings,
    parts,
    read_artifacts,
    run_keys,
)
from dmsrec_jax.results import print_results
from dmsrec_jax.runs import new_model, write_config
from dmsrec_jax.scoring import Scorer
from dmsrec_jax.steps import TrainState, initial_state

console = Console(markup=False, highlight=False)


def train(config: TrainConfig) -> None:
    """Trains one model and writes its run folder."""
    check_flags(config)
    if config.resume and config.overwrite:
        raise InputError("--resume and --overwrite: give one of them")
    split_cpu(config.devices or 1)
    if config.tensorboard:
        summary_writer()
    dataset = SessionDataset.load(config.dataset) if config.dataset else demo_dataset(Path("datasets"))
    inputs = read_artifacts(config, dataset)
    of_parts, settings = parts(config, inputs), model_settings(config, inputs)
    devices = Devices(config.devices, config.batch_size)
    if config.check:
        return
    run = open_run_folder(config, inputs)  # once nothing can be wrong with the flags
    if run is not None:
        with locked(run):
            train_in(run, config, inputs, of_parts, settings, devices)


def train_in(
    run: Path, config: TrainConfig, inputs: Inputs, of_parts: Parts, settings: ModelSettings, devices: Devices
) -> None:
    """Trains in a run folder that is ready, from its last checkpoint where it has one."""
    dataset = inputs.dataset
    (rows, intents), valid, test, sessions = of_parts
    graph = item_graph(config, dataset, sessions)
    init_key, dropout_key, order_key = run_keys(config.seed)
    program, params = new_model(settings, graph, init_key, inputs.item_text)
    epoch_program = EpochProgram(
        rows, config.batch_size, program, devices, order_key, console, intents, config.device_data_mb
    )

    def judge_of(sessions: Split, intents: IntentRows | None) -> Scorer:
        return Scorer(program, sessions, settings.n_positions, intents, config.device_data_mb)

    judge = judge_of(*(test if valid is None else valid))

    state = initial_state(params, hyper(config), dropout_key)
    best = params
    history: History = []
    checkpoints = Checkpoints(run / "checkpoints")
    if config.resume:
        check_same_inputs(run, config, checkpoints.notes() or {}, inputs.hashes)
        write_config(run, kept_settings(config, dataset, run))
    saved = checkpoints.latest({"state": state, "best": best}) if config.resume else None
    if saved:
        _, trees, notes = saved
        state, best, history = TrainState(*trees["state"]), trees["best"], notes["history"]
        console.print(f"{run}: goes on after epoch {len(history)}", soft_wrap=True)
    write_metrics(run, history)

    state = devices.put(state, donated=True)
    compile_seconds = epoch_program.compile(state)
    steps = f"{epoch_program.steps} steps an epoch; compiled in {compile_seconds:.1f} s"
    console.print(f"{dataset.name}: {len(rows):,} sessions, {steps}")
    while len(history) < config.epochs and not is_stale(history, config.patience):
        epoch = len(history)
        started = time.perf_counter()
        state, loss = epoch_program.run(state, epoch)
        seconds = time.perf_counter() - started
        if not math.isfinite(loss):
            raise InputError(f"epoch {epoch + 1}: the loss is {loss}; try a smaller --lr than {config.lr}")
        on_host = devices.get(state)
        metrics = summarise(judge.ranks(on_host.params))
        history.append(epoch_entry(config, epoch, loss, metrics, len(rows), seconds))
        if best_epoch(history) == epoch + 1:
            best = on_host.params
        notes = {"history": history, **inputs.hashes}
        checkpoints.save(epoch + 1, {"state": on_host, "best": best}, notes)
        write_metrics(run, history)
        console.print(epoch_line(history[-1], config.epochs), soft_wrap=True)
    checkpoints.close()

    ranks = (judge if valid is None else judge_of(*test)).ranks(best)
    # What the same model does for a visitor whom no LLM has read.
    without = judge_of(dataset.test, None).ranks(best) if config.intents else None
    results = write_outcome(run, config, inputs, Trained(program, best, history, ranks, without, compile_seconds))
    named = {f"{config.backbone} on {dataset.name}": results}
    if without is not None:
        named["without intents at test"] = {"test": results["test_no_intent"]}
    if config.tensorboard:
        write_tensorboard(run, history)
    print_results(named, console)
    console.print(f"run folder: {run}", soft_wrap=True)


def open_run_folder(config: TrainConfig, inputs: Inputs) -> Path | None:
    """The run folder, made ready; None where the run is finished already and --resume has nothing to do.

    Raises:
      InputError: the folder holds something else, another process is at work there, or the run began otherwise.
    """
    dataset = inputs.dataset
    run = config.out or Path("runs") / f"{dataset.name}-{config.backbone}-{config.seed}"
    check_no_file(run, "--out ")
    check_unlocked(run)
    if config.resume and (run / "config.yaml").is_file():
        check_same_settings(run, config, "--resume ")
        if (run / "results.json").is_file():
            check_same_inputs(run, config, read_json(run / "model.json").get("inputs", {}), inputs.hashes)
            console.print(f"{run}: finished already", soft_wrap=True)
            return None
        return run
    if run.is_dir() and any(run.iterdir()) and not config.overwrite:
        raise InputError(f"{run}: exists already; give --resume to go on with it or --overwrite to replace it")
    reads = filter(None, (config.dataset, config.intents, config.item_text))
    with staged_folder(run, marker="config.yaml", overwrite=config.overwrite, reads=reads) as staged:
        write_config(staged, kept_settings(config, dataset, run))
    return run


def check_same_inputs(
    run: Path, config: TrainConfig, began: Mapping[str, Any], inputs: Mapping[str, str | None]
) -> None:
    """Refuses to go on with other data than the run began with, as far as that is known."""
    for name, identity in inputs.items():
        if began.get(name, identity) != identity:
            other = f"began on another {cli.flag_of(name)} than {getattr(config, name)}"
            raise InputError(f"--resume {run}: {other}, by hash")


def main(argv: Sequence[str] | None = None) -> None:
    cli.run(train, TrainConfig, argv, prog="python -m dmsrec_jax.train")


if __name__ == "__main__":
    main()
