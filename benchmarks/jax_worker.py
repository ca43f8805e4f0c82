"""This project as a benchmark worker: the same graphs, programs and scorer that `dmsrec_jax.train` uses."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.worker import Measured, Task, endless, run_for
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.graphs import batch_budget, build_graphs, stratified_order
from dmsrec_jax.item_graph import build_item_graph
from dmsrec_jax.metrics import summarise
from dmsrec_jax.model import Hyper, ModelSettings
from dmsrec_jax.runs import new_model
from dmsrec_jax.scoring import Scorer
from dmsrec_jax.steps import initial_state, train_steps

CHUNK = 32
"""Training steps per call, at most. A training run takes longer chunks; a call's overhead is below a millisecond."""


class JaxWorker:
    """Ours, on one device."""

    def __init__(self, task: Task) -> None:
        jax.config.update("jax_platforms", task.device)
        dataset = SessionDataset.load(task.dataset)
        gcegnn = task.backbone == "gcegnn"
        settings = ModelSettings(task.backbone, dataset.n_items, task.d, "dot", dataset.longest)
        item_graph = build_item_graph(dataset.sessions, dataset.n_items) if gcegnn else None
        init_key, dropout_key, self.order_key = jax.random.split(jax.random.key(task.seed), 3)
        self.program, params = new_model(settings, item_graph, init_key)
        rates = Hyper(lr=1e-3, lr_decay=0.1, lr_decay_every=3, lr_first_decay=3, l2=1e-5, dropout_global=0.5)
        self.state = initial_state(params, rates if gcegnn else rates._replace(dropout_global=None), dropout_key)

        graphs = build_graphs(dataset.train)
        self.n, batches = len(dataset.train), -(-len(dataset.train) // task.batch)
        self.chunks = -(-batches // CHUNK)
        steps = self.chunks * -(-batches // self.chunks)
        budget = batch_budget(graphs, task.batch, steps)
        self.graphs = jax.tree.map(jnp.asarray, graphs)
        lengths = jnp.asarray(np.diff(graphs.click_offsets)[:-1])
        self.order = jax.jit(partial(stratified_order, lengths=lengths, sessions=task.batch, steps=steps))
        steps_program = partial(train_steps, graphdef=self.program.graphdef, budget=budget)
        self.train_steps = jax.jit(steps_program, donate_argnums=1)
        self.parts = endless(self.epoch)
        self.epochs = 0
        self.scorer = Scorer(self.program, dataset.test, dataset.longest)

    def epoch(self) -> Iterator[np.ndarray]:
        """One epoch's sessions, int32 [steps, B] per chunk."""
        order = np.asarray(self.order(jax.random.fold_in(self.order_key, self.epochs)))
        self.epochs += 1
        yield from np.split(order, self.chunks)

    def train(self, seconds: float) -> Measured:
        """See `Worker.train`."""
        losses = []
        steps = 0

        def step() -> int:
            nonlocal steps
            part = next(self.parts)
            self.state, values = self.train_steps(
                self.program.constants, self.state, self.graphs, jnp.asarray(part), jnp.zeros((), jnp.int32)
            )
            losses.append(np.asarray(values))
            steps += len(part)
            return int((part < self.n).sum())

        measured = run_for(seconds, step, lambda: float(np.concatenate(losses).mean()))
        return measured._replace(steps=steps)

    def evaluate(self, seconds: float) -> Measured:
        """See `Worker.evaluate`. The whole test set each time, as a training run scores it."""
        metrics = {}

        def step() -> int:
            ranks = self.scorer.ranks(self.state.params)
            metrics.update(summarise(ranks))
            return len(ranks)

        return run_for(seconds, step, lambda: metrics["raw"]["hr@20"])

    def describe(self) -> dict[str, object]:
        """See `Worker.describe`."""
        device = jax.devices()[0]
        stats = device.memory_stats() or {}
        return {
            "jax": jax.__version__,
            "device": device.device_kind,
            "device_peak_mb": stats["peak_bytes_in_use"] / 2**20 if "peak_bytes_in_use" in stats else None,
        }
