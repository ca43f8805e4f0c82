"""What the benchmark asks of each form: train, evaluate, say how much memory it took. Each lives in its own process."""

import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from dmsrec_jax.config import Backbone

PRODUCTS = {"cpu": "float32", "cuda": "TF32"}
"""Precision of matrix products by device: jax's default, which torch takes on GPUs only when told."""

Form = Literal["jax", "tuned", "released"]
COMPARED: tuple[Backbone, ...] = ("srgnn", "gcegnn", "tagnn", "share", "msgifsr")
"""Backbones that have PyTorch forms; others are measured alone."""


def torch_precision(device: str) -> str:
    """torch's word for the precision of `PRODUCTS`."""
    return {"float32": "highest", "TF32": "high"}[PRODUCTS[device]]


@dataclass(frozen=True)
class Task:
    """What a worker is made for."""

    dataset: Path
    backbone: Backbone
    form: Form
    batch: int
    d: int
    seed: int
    device: Literal["cpu", "cuda"]


class Measured(NamedTuple):
    """Work done, the wall time it took, and a figure that shows it was the same work for all forms."""

    sessions: int
    seconds: float
    steps: int
    quality: float
    """Training: mean loss. Evaluating: HR@20 in percent of the sessions evaluated."""


class Worker(Protocol):
    """One form of one backbone on one data set. Its constructor takes the `Task` and prepares the data."""

    def train(self, seconds: float) -> Measured:
        """Trains on from where it was, data included, for ``seconds`` and at least one step; waits for the results."""

    def evaluate(self, seconds: float) -> Measured:
        """Ranks test targets among all items and sums up the metrics, for ``seconds`` and at least one step."""

    def describe(self) -> dict[str, object]:
        """Versions, settings, and peak device memory where there is any."""


def run_for(seconds: float, step: Callable[[], int], finish: Callable[[], float]) -> Measured:
    """Calls ``step`` (returns its number of sessions) until ``seconds`` are over, then ``finish`` inside the clock."""
    start, sessions, steps = time.perf_counter(), 0, 0
    while not steps or time.perf_counter() - start < seconds:
        sessions += step()
        steps += 1
    quality = finish()
    return Measured(sessions, time.perf_counter() - start, steps, quality)


def endless(make: Callable[[], Iterator]) -> Iterator:
    """One epoch after the other."""
    while True:
        yield from make()


def create(task: Task) -> Worker:
    """The form's worker. Imports here, so that no process loads the other's framework."""
    if task.form == "jax":
        from benchmarks.jax_worker import JaxWorker

        return JaxWorker(task)
    from benchmarks.pytorch_baseline.workers import ReleasedWorker, TunedWorker

    return TunedWorker(task) if task.form == "tuned" else ReleasedWorker(task)


def serve(task: Task, connection: Connection) -> None:
    """Process body: makes the worker, then answers ``(method, arguments)`` until told to stop with None."""
    start = time.perf_counter()
    worker = create(task)
    connection.send(time.perf_counter() - start)
    while (request := connection.recv()) is not None:
        method, arguments = request
        connection.send(getattr(worker, method)(*arguments))
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
