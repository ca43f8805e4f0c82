"""``python -m benchmarks.throughput``: ours beside two PyTorch forms, interleaved on one machine."""

import datetime
import multiprocessing
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.matmul_rate import Rate, measure, step_products
from benchmarks.worker import COMPARED, PRODUCTS, Form, Measured, Task, serve
from dmsrec_jax import cli
from dmsrec_jax.config import Backbone
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import write_json

console = Console()
CONTEXT = multiprocessing.get_context("spawn")
PHASES = ("train", "evaluate")
WARM_UP = 1.0
"""Seconds of each phase that follow the first call and do not count either."""
PAIR_COPIES = 7
"""Copies of its [B, L, L, d] products that the released GCE-GNN holds at its peak, about."""
TARGET_COPIES = 3
"""The same of the released TAGNN's [B, n_items, L] and [B, n_items, d]."""


@dataclass(frozen=True)
class ThroughputConfig:
    """Measure training and evaluation sessions/s of this project and of two PyTorch forms, in turns.

    Every form lives in its own process, and only one runs at a time: A B C, A B C, … Run it on an idle machine.
    """

    dataset: tuple[Path, ...]
    """Dataset folders made by `python -m dmsrec_jax.prepare`."""
    backbones: tuple[Backbone, ...] = COMPARED
    """Which models; attenmixer, dhcn and miasrec have no PyTorch forms and are measured alone."""
    forms: tuple[Form, ...] = ("jax", "tuned", "released")
    """jax: this project. tuned: packed PyTorch. released: PyTorch at the cost of the original code."""
    rounds: int = 5
    """Turns of each form."""
    seconds: float = 8.0
    """Time of one turn, once for training and once for evaluation; at least one step is taken."""
    batch_size: int = 100
    """Sessions per training step."""
    d: int = 100
    """Hidden size."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where all forms run."""
    released_memory: float = 8.0
    """GiB for the largest arrays of the released GCE-GNN and TAGNN; their batch is quartered until they fit."""
    seed: int = 0
    """Seed of initial values and batches."""
    out: Path = Path("benchmarks/results")
    """Folder for <dataset>-<backbone>-<device>.json."""


class Remote:
    """A form in its own process."""

    def __init__(self, task: Task) -> None:
        """Starts the process and waits until its data are ready."""
        self.task = task
        self.connection, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=serve, args=(task, theirs))  # not a daemon: it has loaders of its own
        self.process.start()
        theirs.close()
        self.prepare_seconds: float = self._receive()

    def call(self, method: str, *arguments: object) -> Any:
        """Has the worker do one thing, and waits for it."""
        self.connection.send((method, arguments))
        return self._receive()

    def _receive(self) -> Any:
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            hint = "killed, out of memory?" if code == -9 else "its own message is above"
            raise InputError(
                f"{self.task.form} {self.task.backbone}: worker ended with exit code {code} ({hint})"
            ) from None

    def close(self) -> float:
        """Ends the process; returns its peak resident memory in MiB."""
        self.connection.send(None)
        peak = self._receive()
        self.process.join()
        return peak

    def kill(self) -> None:
        """Ends the process where it stands, if it still runs."""
        if self.process.is_alive():
            self.process.terminate()


def run(config: ThroughputConfig) -> None:
    """All data sets and backbones, one result file each."""
    for name in ("rounds", "batch_size", "d"):
        if getattr(config, name) < 1:
            raise InputError(f"{cli.flag_of(name)} {getattr(config, name)}: at least 1 is due")
    if not config.seconds > 0:
        raise InputError(f"--seconds {config.seconds}: more than 0 is due")
    start = conditions()
    datasets = [SessionDataset.load(path) for path in config.dataset]
    for dataset in datasets:
        for backbone in config.backbones:
            result = compare(config, dataset, backbone) | start
            path = config.out / f"{dataset.name}-{backbone}-{config.device}.json"
            write_json(path, result)
            show(result)
            console.print(f"{path}\n")


def compare(config: ThroughputConfig, dataset: SessionDataset, backbone: Backbone) -> dict[str, Any]:
    """Measures all forms on one data set, in turns."""
    of_backbone = [form for form in config.forms if form == "jax" or backbone in COMPARED]
    if not of_backbone:
        raise InputError(f"--forms {' '.join(config.forms)}: {backbone} has the form jax alone")
    runs: dict[Form, dict[str, list[Measured]]] = {form: {phase: [] for phase in PHASES} for form in of_backbone}
    first: dict[Form, dict[str, Measured]] = {}
    remotes: dict[Form, Remote] = {}
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(of_backbone) * (1 + config.rounds * len(PHASES)))
        try:
            for form in of_backbone:
                progress.update(bar, description=f"{dataset.name} {backbone}: {form} warms up")
                remotes[form] = Remote(make_task(config, dataset, backbone, form))
                first[form] = {phase: remotes[form].call(phase, 0.0) for phase in PHASES}
                for phase in PHASES:
                    remotes[form].call(phase, WARM_UP)
                progress.advance(bar)
            for number in range(config.rounds):
                for phase in PHASES:
                    for form, remote in remotes.items():
                        progress.update(
                            bar, description=f"{dataset.name} {backbone}: round {number + 1}, {form}, {phase}"
                        )
                        runs[form][phase].append(remote.call(phase, config.seconds))
                        progress.advance(bar)
            described = {form: remote.call("describe") for form, remote in remotes.items()}
            peaks = {form: remote.close() for form, remote in remotes.items()}
        finally:
            for remote in remotes.values():
                remote.kill()
        progress.update(bar, description=f"{dataset.name} {backbone}: matrix products alone")
        rates = {form: product_rate(config, dataset, backbone, form) for form in of_backbone}
    forms = {
        form: {
            "batch": remotes[form].task.batch,
            "prepare_s": remotes[form].prepare_seconds,
            "peak_rss_mb": peaks[form],
            **{phase: summarise(runs[form][phase], first[form][phase]) for phase in PHASES},
            **described[form],
        }
        for form in of_backbone
    }
    speed = {form: {phase: forms[form][phase]["sessions_per_s"] for phase in PHASES} for form in forms}
    for form in forms:
        forms[form]["epoch_s"] = len(dataset.train) / speed[form]["train"]
        rate, steps_per_s = rates[form], speed[form]["train"] / config.batch_size
        forms[form]["matmul"] = rate and {
            "gflop_per_step": rate.flops / 1e9,
            "machine_gflops_per_s": rate.gflops_per_s,
            "share": rate.seconds * steps_per_s,
        }
    return {
        "dataset": {"name": dataset.name, "hash": dataset.hash, "train": len(dataset.train), "test": len(dataset.test)},
        "backbone": backbone,
        "device": config.device,
        "batch": config.batch_size,
        "d": config.d,
        "dtype": "float32",
        "matmul_precision": PRODUCTS[config.device],
        "rounds": config.rounds,
        "seconds_per_turn": config.seconds,
        "forms": forms,
        "ratios": {
            f"jax/{form}": {phase: speed["jax"][phase] / speed[form][phase] for phase in PHASES}
            for form in forms
            if form != "jax" and "jax" in forms
        },
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "torch", "numpy")},
        "python": platform.python_version(),
        "command": shlex.join(["python", "-m", "benchmarks.throughput", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def make_task(config: ThroughputConfig, dataset: SessionDataset, backbone: Backbone, form: Form) -> Task:
    """A form's task. Only a released form may get a smaller batch."""
    batch = config.batch_size
    if form == "released":
        session = released_bytes(dataset, backbone, config.d)
        while batch > 1 and batch * session > config.released_memory * 2**30:
            batch = max(batch // 4, 1)
    return Task(dataset.path, backbone, form, batch, config.d, config.seed, config.device)


def released_bytes(dataset: SessionDataset, backbone: Backbone, d: int) -> int:
    """About what a session takes in the largest arrays of the released form, at its peak."""
    width = int(dataset.train.lengths.max())
    if backbone == "gcegnn":
        return 4 * PAIR_COPIES * width**2 * d
    return 4 * TARGET_COPIES * dataset.n_items * (width + d) if backbone == "tagnn" else 0


def summarise(runs: list[Measured], first: Measured) -> dict[str, Any]:
    """Median and spread over rounds; the first call's extra time is warm-up and compilation."""
    speeds = [run.sessions / run.seconds for run in runs]
    median = statistics.median(speeds)
    return {
        "sessions_per_s": median,
        "min": min(speeds),
        "max": max(speeds),
        "rounds": speeds,
        "steps": sum(run.steps for run in runs),
        "warm_up_s": max(first.seconds - first.sessions / median, 0.0),
        "quality": runs[-1].quality,
    }


def product_rate(config: ThroughputConfig, dataset: SessionDataset, backbone: Backbone, form: Form) -> Rate | None:
    """The machine's rate at a step's matrix products, in a process of its own; None where they are not listed."""
    if backbone not in COMPARED:
        return None
    products = step_products(dataset, backbone, form, config.batch_size, config.d)
    with CONTEXT.Pool(1) as pool:
        return pool.apply(measure, (products, config.device))


def conditions() -> dict[str, Any]:
    """Machine and commit, as they are before any work."""
    return {"machine": {**machine(), "load_at_start": os.getloadavg()[0]}, "commit": commit()}


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }


def commit() -> str | None:
    """The checked-out commit, with ``+`` where files differ from it; None outside a repository."""
    try:
        output = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+"], capture_output=True, text=True
        )
    except OSError:
        return None
    return output.stdout.strip() or None


def show(result: dict[str, Any]) -> None:
    """The result as a table."""
    title = f"{result['backbone']} on {result['dataset']['name']}, {result['device']}, d {result['d']}"
    caption = "train, evaluate: sessions/s, median and range; matmul: share of the rate at a step's products"
    table = Table(title=title, caption=caption, box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    table.add_column("form", no_wrap=True)
    for column in (*PHASES, "warm-up s", "epoch s", "MiB", "matmul"):
        table.add_column(column, justify="right", no_wrap=True)
    for form, entry in result["forms"].items():
        name = form if entry["batch"] == result["batch"] else f"{form}\nbatch {entry['batch']}"
        speeds = [f"{e['sessions_per_s']:,.0f}\n{e['min']:,.0f}–{e['max']:,.0f}" for e in (entry[p] for p in PHASES)]
        warm_up = "+".join(f"{entry[phase]['warm_up_s']:.1f}" for phase in PHASES)
        share = f"{100 * entry['matmul']['share']:.0f} %" if entry["matmul"] else "–"
        table.add_row(name, *speeds, warm_up, f"{entry['epoch_s']:,.0f}", f"{entry['peak_rss_mb']:,.0f}", share)
    console.print(table)
    for name, ratio in result["ratios"].items():
        console.print(f"{name}: train {ratio['train']:.2f}×, evaluate {ratio['evaluate']:.2f}×")
    if matmul := result["forms"].get("jax", {}).get("matmul"):
        gflop, rate = matmul["gflop_per_step"], matmul["machine_gflops_per_s"]
        console.print(f"a step's matrix products: {gflop:.2f} GFLOP at {rate:.0f} GFLOP/s")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(run, ThroughputConfig, argv, prog="python -m benchmarks.throughput")


if __name__ == "__main__":
    main()
