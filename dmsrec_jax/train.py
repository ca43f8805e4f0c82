"""``python -m dmsrec_jax.train``: the story of a run, from sessions to scored test set."""

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dmsrec_jax import cli
from dmsrec_jax.checkpoint import Checkpoints
from dmsrec_jax.config import TrainConfig
from dmsrec_jax.data import SessionDataset, Sessions, Split
from dmsrec_jax.data.demo import demo_dataset
from dmsrec_jax.data.splits import validation_split
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import staged_file, staged_folder
from dmsrec_jax.graphs import batch_budget, build_graphs, stratified_order
from dmsrec_jax.item_graph import build_item_graph
from dmsrec_jax.metrics import METRICS, VIEWS, summarise
from dmsrec_jax.model import Hyper, ModelSettings
from dmsrec_jax.parallel import Devices
from dmsrec_jax.results import dataset_identity, print_results, write_ranks, write_results
from dmsrec_jax.runs import new_model, save_model, write_config
from dmsrec_jax.scoring import Scorer
from dmsrec_jax.steps import TrainState, initial_state, learning_rate, train_steps

console = Console(markup=False, highlight=False)
SELECT_BY = "mrr@20"
"""Validation metric (raw) that chooses the epoch."""
REPORTS = range(5, 21)
"""How many times an epoch reports progress; the number that divides its steps best is taken."""

AT_LEAST = dict.fromkeys(
    ("batch_size", "epochs", "patience", "lr_decay_every", "d", "n_neighbors", "n_positions"), 1
) | dict.fromkeys(
    ("lr", "lr_decay", "lr_first_decay", "l2", "dropout_global", "dropout_local", "validation_fraction", "seed"), 0
)
BELOW = {"dropout_global": 1, "dropout_local": 1, "validation_fraction": 1, "seed": 2**32}
"""Numbers that flags accept."""


def train(config: TrainConfig) -> None:
    """Trains one model and writes its run folder."""
    check_ranges(config)
    dataset = SessionDataset.load(config.dataset) if config.dataset else demo_dataset(Path("datasets"))
    run = open_run_folder(config, dataset)
    if run is None:
        return
    rows, valid, sessions = split(config, dataset)
    settings = model_settings(config, dataset)
    graph = build_item_graph(sessions, dataset.n_items, config.n_neighbors) if config.backbone == "gcegnn" else None
    init_key, dropout_key, order_key = jax.random.split(jax.random.key(config.seed), 3)
    program, params = new_model(settings, graph, init_key)
    devices = Devices(config.devices, config.batch_size)
    epoch_program = EpochProgram(config, rows.last(settings.n_positions), program, devices, order_key)
    judge = Scorer(program, dataset.test if valid is None else valid, settings.n_positions)

    state = initial_state(params, hyper(config), dropout_key)
    best = params
    history: list[dict[str, Any]] = []
    checkpoints = Checkpoints(run / "checkpoints")
    saved = checkpoints.latest({"state": state, "best": best}) if config.resume else None
    if saved:
        _, trees, notes = saved
        if notes.get("dataset") != dataset.hash:
            raise InputError(f"--resume {run}: began on another dataset than {dataset.path}, by hash")
        state, best, history = TrainState(*trees["state"]), trees["best"], notes["history"]
        console.print(f"{run}: goes on after epoch {len(history)}")
    write_metrics(run, history)

    state = devices.put(state)
    compile_seconds = epoch_program.compile(state)
    steps = f"{epoch_program.steps} steps an epoch; compiled in {compile_seconds:.1f} s"
    console.print(f"{dataset.name}: {len(rows):,} sessions, {steps}")
    while len(history) < config.epochs and not is_stale(history, config):
        epoch = len(history)
        started = time.perf_counter()
        state, loss = epoch_program.run(state, epoch)
        seconds = time.perf_counter() - started
        if not math.isfinite(loss):
            raise InputError(f"epoch {epoch + 1}: the loss is {loss}; try a smaller --lr than {config.lr}")
        params = devices.get(state.params)
        metrics = summarise(judge.ranks(params))
        history.append(
            {
                "epoch": epoch + 1,
                "loss": loss,
                "lr": float(learning_rate(hyper(config), jnp.asarray(epoch))),
                "test" if valid is None else "validation": metrics,
                "sessions_per_s": len(rows) / seconds,
                "seconds": seconds,
            }
        )
        if best_epoch(history) == epoch + 1:
            best = params
        notes = {"history": history, "dataset": dataset.hash}
        checkpoints.save(epoch + 1, {"state": devices.get(state), "best": best}, notes)
        write_metrics(run, history)
        print_epoch(history[-1], config.epochs)
    checkpoints.close()

    save_model(run, settings, dataset, program, best)
    if valid is not None:
        judge = Scorer(program, dataset.test, settings.n_positions)
    ranks = judge.ranks(best)
    results = {
        "test": summarise(ranks) if valid is not None else best_of_each(history),
        "protocol": config.protocol,
        "model": config.backbone,
        "dataset": dataset_identity(dataset),
        "seed": config.seed,
        "epochs": len(history),
        "best_epoch": best_epoch(history),
        "validation": None if valid is None else history[best_epoch(history) - 1]["validation"],
        "train_seconds": sum(entry["seconds"] for entry in history),
        "compile_seconds": compile_seconds,
    }
    write_ranks(run, ranks)
    if config.tensorboard:
        write_tensorboard(run, history)
    write_results(run, results)
    print_results({f"{config.backbone} on {dataset.name}": results}, console)
    console.print(f"run folder: {run}")


def check_ranges(config: TrainConfig) -> None:
    """Refuses numbers that no run can be made with."""
    for name, least in AT_LEAST.items():
        value, limit = getattr(config, name), BELOW.get(name, math.inf)
        if value is not None and not least <= value < limit:
            bounds = f"at least {least}" + (f" and below {limit}" if name in BELOW else "")
            raise InputError(f"--{name.replace('_', '-')} {value}: {bounds} is due")


def open_run_folder(config: TrainConfig, dataset: SessionDataset) -> Path | None:
    """The run folder, made ready; None where the run is finished already and --resume has nothing to do."""
    run = config.out or Path("runs") / f"{dataset.name}-{config.backbone}-{config.seed}"
    if run.exists() and not run.is_dir():
        raise InputError(f"--out {run}: exists and is not a folder")
    # What comes back through --config must neither resume nor overwrite.
    kept = dataclasses.replace(
        config, dataset=dataset.path.absolute(), out=run, config=None, resume=False, overwrite=False
    )
    if config.resume and (run / "config.yaml").is_file():
        check_same_settings(run, config)
        if (run / "results.json").is_file():
            console.print(f"{run}: finished already")
            return None
        write_config(run, kept)
        return run
    if run.is_dir() and any(run.iterdir()):
        if not config.overwrite:
            raise InputError(f"{run}: exists already; give --resume to go on with it or --overwrite to replace it")
        if not (run / "config.yaml").is_file():
            raise InputError(f"--overwrite {run}: has no config.yaml, so it is not a run folder; remove it yourself")
    with staged_folder(run, overwrite=config.overwrite) as staged:
        write_config(staged, kept)
    return run


def check_same_settings(run: Path, config: TrainConfig) -> None:
    """Refuses to go on with other settings than the run began with."""
    free = {"out", "config", "dataset", "resume", "overwrite", "tensorboard", "devices"}
    begun = cli.read_yaml(run / "config.yaml")
    for field in dataclasses.fields(config):
        if field.name not in free and begun.get(field.name) != getattr(config, field.name):
            flag = "--" + field.name.replace("_", "-")
            raise InputError(
                f"--resume {run}: began with {flag} {begun.get(field.name)}, not {getattr(config, field.name)}"
            )


def split(config: TrainConfig, dataset: SessionDataset) -> tuple[Split, Split | None, Sessions]:
    """Training rows, validation rows (none under the paper's protocol), and the sessions of the global graph."""
    if config.protocol == "paper":
        return dataset.train, None, dataset.sessions
    return validation_split(dataset, config.validation_fraction)


def model_settings(config: TrainConfig, dataset: SessionDataset) -> ModelSettings:
    longest = max(int(part.lengths.max()) for part in (dataset.train, dataset.test))
    return ModelSettings(
        config.backbone,
        dataset.n_items,
        config.d,
        config.score,
        config.n_positions or longest,
        config.n_neighbors,
    )


def hyper(config: TrainConfig) -> Hyper:
    """The traced settings; a dropout of 0 is left out of the program."""
    first = config.lr_decay_every if config.lr_first_decay is None else config.lr_first_decay
    uses_dropout = config.backbone == "gcegnn"
    return Hyper(
        config.lr,
        config.lr_decay,
        config.lr_decay_every,
        first,
        config.l2,
        (config.dropout_global or None) if uses_dropout else None,
        (config.dropout_local or None) if uses_dropout else None,
    )


class EpochProgram:
    """Training sessions on the devices, and the one compiled program that trains an epoch on them."""

    def __init__(self, config: TrainConfig, rows: Split, program: Any, devices: Devices, key: jax.Array) -> None:
        graphs = build_graphs(rows)
        batches = -(-len(rows) // config.batch_size)
        reports = min(REPORTS, key=lambda n: (-batches % n, -n)) if batches >= REPORTS.stop else 1
        self.steps = -(-batches // reports) * reports
        self._reports, self._devices, self._key, self._n = reports, devices, key, len(rows)
        budget = batch_budget(graphs, config.batch_size, self.steps, devices.count)
        self._program = devices.compile_training(train_steps, graphdef=program.graphdef, budget=budget)
        self._constants, self._graphs = devices.put(program.constants), devices.put(graphs)
        self._order = jax.jit(
            partial(
                stratified_order,
                lengths=np.diff(graphs.click_offsets)[:-1],
                sessions=config.batch_size,
                steps=self.steps,
            )
        )

    def orders(self, epoch: int) -> list[np.ndarray]:
        """This epoch's sessions: one int32 [steps, B] (or [devices, steps, B / devices]) per report."""
        order = np.asarray(self._order(jax.random.fold_in(self._key, epoch)))
        return [self._devices.shares(part) for part in np.split(order, self._reports)]

    def compile(self, state: TrainState) -> float:
        """Compiles ahead of the first step; returns the seconds it took."""
        started = time.perf_counter()
        order = jnp.asarray(self.orders(0)[0])
        self._program = self._program.lower(self._constants, state, self._graphs, order, jnp.asarray(0)).compile()
        return time.perf_counter() - started

    def run(self, state: TrainState, epoch: int) -> tuple[TrainState, float]:
        """Trains one epoch; returns the new state and the mean loss over steps."""
        losses: list[float] = []
        with progress_bar() as bar:
            task = bar.add_task(f"epoch {epoch + 1}", total=self._n, rate="", loss="")
            started, done = time.perf_counter(), 0
            for part in self.orders(epoch):
                state, values = self._program(
                    self._constants, state, self._graphs, jnp.asarray(part), jnp.asarray(epoch)
                )
                losses += self._devices.get(values).tolist()
                done += int((part < self._n).sum())
                rate = f"{done / (time.perf_counter() - started):,.0f} sessions/s"
                bar.update(task, completed=done, rate=rate, loss=f"loss {np.mean(losses):.4f}")
        return state, float(np.mean(losses))


def progress_bar() -> Progress:
    fields: Sequence[Any] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    return Progress(*fields, console=console, transient=True, disable=not console.is_terminal)


def best_epoch(history: list[dict[str, Any]]) -> int:
    """The epoch (from 1) with the best selection metric, the earliest of equals."""
    scores = [entry["validation" if "validation" in entry else "test"]["raw"][SELECT_BY] for entry in history]
    return int(np.argmax(scores)) + 1


def best_of_each(history: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The released code's report: each metric's best epoch ON THE TEST SET."""
    return {view: {m: max(entry["test"][view][m] for entry in history) for m in METRICS} for view in VIEWS}


def is_stale(history: list[dict[str, Any]], config: TrainConfig) -> bool:
    """Whether validation has not improved for --patience epochs; the paper's protocol always trains all epochs."""
    return config.protocol == "default" and bool(history) and len(history) - best_epoch(history) >= config.patience


def print_epoch(entry: dict[str, Any], epochs: int) -> None:
    name = "validation" if "validation" in entry else "test"
    raw = entry[name]["raw"]
    console.print(
        f"epoch {entry['epoch']:>2}/{epochs}  loss {entry['loss']:.4f}  {name} HR@20 {raw['hr@20']:.2f} "
        f"MRR@20 {raw['mrr@20']:.2f}  {entry['sessions_per_s']:,.0f} sessions/s  {entry['seconds']:.1f} s",
        soft_wrap=True,
    )


def write_metrics(run: Path, history: list[dict[str, Any]]) -> None:
    """Writes ``metrics.jsonl``, a line per epoch."""
    with staged_file(run / "metrics.jsonl") as staged:
        staged.write_text("".join(json.dumps(entry) + "\n" for entry in history), encoding="utf-8")


def write_tensorboard(run: Path, history: list[dict[str, Any]]) -> None:
    """Writes the curves for TensorBoard."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard: needs the extra: pip install 'dmsrec[tensorboard]'") from None
    with SummaryWriter(str(run / "tensorboard")) as writer:
        for entry in history:
            writer.add_scalar("loss", entry["loss"], entry["epoch"])
            for name in {"validation", "test"} & entry.keys():
                for metric, value in entry[name]["raw"].items():
                    writer.add_scalar(f"{name}/{metric}", value, entry["epoch"])


def main(argv: Sequence[str] | None = None) -> None:
    cli.run(train, TrainConfig, argv, prog="python -m dmsrec_jax.train")


if __name__ == "__main__":
    main()
