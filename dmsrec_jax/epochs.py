"""A training run's epochs on the devices: one compiled program, called a few times per epoch to report progress."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dmsrec_jax.config import DEVICE_DATA_MB
from dmsrec_jax.data import Split
from dmsrec_jax.feed import GraphFeed
from dmsrec_jax.graphs import IntentRows, build_graphs
from dmsrec_jax.orders import batch_budget, stratified_order
from dmsrec_jax.parallel import Devices
from dmsrec_jax.steps import ModelProgram, TrainState, train_steps

REPORTS = range(5, 21)
"""How many times an epoch reports progress; the number that divides its steps best is taken."""


def epoch_steps(n: int, batch_size: int) -> tuple[int, int]:
    """Steps of an epoch of ``n`` sessions, and how many times it reports progress, which divides them."""
    batches = -(-n // batch_size)
    reports = min(REPORTS, key=lambda n: (-batches % n, -n)) if batches >= REPORTS.stop else 1
    return -(-batches // reports) * reports, reports


def order_program(batch_size: int, steps: int) -> Callable[..., jax.Array]:
    """From an epoch's key and ``lengths`` to its sessions, int32 [steps, batch_size]: `stratified_order`, compiled."""
    return jax.jit(partial(stratified_order, sessions=batch_size, steps=steps))


class EpochProgram:
    """Training sessions on the devices, and the one compiled program that trains an epoch on them."""

    def __init__(
        self,
        rows: Split,
        batch_size: int,
        program: ModelProgram,
        devices: Devices,
        key: jax.Array,
        console: Console,
        intents: IntentRows | None = None,
        device_data_mb: float = DEVICE_DATA_MB,
        parts: Sequence[np.ndarray] | None = None,
    ) -> None:
        """Builds the graphs and moves them to the devices, or has them streamed.

        Args:
          rows: training sessions.
          batch_size: sessions per step, over all devices.
          program: the model.
          devices: where to train.
          key: PRNG key of the epochs' orders.
          console: where progress is shown.
          intents: of the same sessions.
          device_data_mb: see `GraphFeed`; without effect on the results.
          parts: rows to train on, the first until `take_up` names another; all rows if left out.
        """
        graphs = build_graphs(rows, intents=intents)
        self._parts = [np.arange(len(rows))] if parts is None else parts
        self.steps, reports = epoch_steps(max(map(len, self._parts)), batch_size)
        self._devices, self._n, self._console, self._lengths = devices, len(rows), console, graphs.lengths
        budget = batch_budget(graphs, batch_size, self.steps, devices.count, self._parts)
        self._program = devices.compile_training(train_steps, graphdef=program.graphdef, budget=budget)
        self._feed = GraphFeed(graphs, budget, devices, device_data_mb)
        self._chunks = self._feed.chunk_count(self.steps, reports)
        self._order = order_program(batch_size, self.steps)
        self.take_up(0, program.constants, key)

    def take_up(self, part: int, constants: nnx.State, key: jax.Array) -> None:
        """Goes on with another part of the rows: another model of the same program, and orders of its own."""
        rows = self._parts[part]
        # Orders of all parts have one shape: what a part lacks are more empty sessions, which come before all others.
        lacking = max(map(len, self._parts)) - len(rows)
        self._rows = np.append(rows, np.full(lacking + 1, self._n)).astype(np.int32)
        self._of_rows = np.append(self._lengths[rows], np.zeros(lacking, np.int32))
        self._total, self._constants, self._key = len(rows), self._devices.put(constants), key

    def orders(self, epoch: int) -> list[np.ndarray]:
        """This epoch's sessions: one int32 [steps, B] (or [devices, steps, B / devices]) per chunk."""
        order = self._rows[np.asarray(self._order(jax.random.fold_in(self._key, epoch), self._of_rows))]
        return [self._devices.shares(part) for part in np.split(order, self._chunks)]

    def compile(self, state: TrainState) -> float:
        """Compiles ahead of the first step; returns the seconds it took."""
        started = time.perf_counter()
        graphs, order = next(self._feed.chunks(self.orders(0)[:1]))
        self._program = self._program.lower(self._constants, state, graphs, order, jnp.asarray(0)).compile()
        return time.perf_counter() - started

    def run(self, state: TrainState, epoch: int) -> tuple[TrainState, float]:
        """Trains one epoch; returns the new state and the mean loss over steps."""
        losses: list[float] = []
        with progress_bar(self._console) as bar:
            task = bar.add_task(f"epoch {epoch + 1}", total=self._total, rate="", loss="")
            started, done, total = time.perf_counter(), 0, 0.0
            parts = self.orders(epoch)
            for part, (graphs, order) in zip(parts, self._feed.chunks(parts), strict=True):
                state, values = self._program(self._constants, state, graphs, order, jnp.asarray(epoch))
                losses += (new := self._devices.get(values).tolist())
                total += sum(new)
                done += int((part < self._n).sum())
                rate = f"{done / (time.perf_counter() - started):,.0f} sessions/s"
                bar.update(task, completed=done, rate=rate, loss=f"loss {total / len(losses):.4f}")
        return state, float(np.mean(losses))


def progress_bar(console: Console) -> Progress:
    """Shows sessions done, and the task's fields ``rate`` and ``loss``."""
    fields: Sequence[Any] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    return Progress(*fields, console=console, transient=True, disable=not console.is_terminal)
