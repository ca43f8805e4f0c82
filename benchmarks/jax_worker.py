"""This project as a benchmark worker: the same graphs, programs and scorer that `dmsrec_jax.train` uses."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.worker import Measured, Task, endless, run_for
from dmsrec_jax.config import TrainConfig
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.epochs import order_program
from dmsrec_jax.graphs import build_graphs
from dmsrec_jax.metrics import summarise
from dmsrec_jax.orders import batch_budget
from dmsrec_jax.parallel import Devices
from dmsrec_jax.recipe import Inputs, hyper, item_graph, model_settings, run_keys
from dmsrec_jax.runs import new_model
from dmsrec_jax.scoring import Scorer
from dmsrec_jax.steps import initial_state, train_steps

CHUNK = 32
"""Training steps per call, at most. A training run takes longer chunks; a call's overhead is below a millisecond."""


class JaxWorker:
    """Ours, on one device."""

    def __init__(self, task: Task) -> None:
        jax.config.update("jax_platforms", task.device)
        self.devices = Devices(1, task.batch)
        # The defaults of `train` are the released code's settings, dropouts among them, as in the other forms.
        dataset, config = SessionDataset.load(task.dataset), TrainConfig(task.backbone, d=task.d)
        settings = model_settings(config, Inputs(dataset, None, None, {}))
        init_key, dropout_key, self.order_key = run_keys(task.seed)
        self.program, params = new_model(settings, item_graph(config, dataset, dataset.sessions), init_key)
        self.state = self.devices.put(initial_state(params, hyper(config), dropout_key), donated=True)
        self.constants = self.devices.put(self.program.constants)

        graphs = build_graphs(dataset.train)
        self.n, batches = len(dataset.train), -(-len(dataset.train) // task.batch)
        self.chunks = -(-batches // CHUNK)
        steps = self.chunks * -(-batches // self.chunks)
        budget = batch_budget(graphs, task.batch, steps, self.devices.count)
        self.graphs = self.devices.put(graphs)
        self.order = partial(order_program(task.batch, steps), lengths=graphs.lengths)
        self.train_steps = self.devices.compile_training(train_steps, graphdef=self.program.graphdef, budget=budget)
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
            shares = self.devices.scatter(self.devices.shares(part))
            self.state, values = self.train_steps(
                self.constants, self.state, self.graphs, shares, jnp.zeros((), jnp.int32)
            )
            losses.append(self.devices.get(values))
            steps += len(part)
            return int((part < self.n).sum())

        measured = run_for(seconds, step, lambda: float(np.concatenate(losses).mean()))
        return measured._replace(steps=steps)

    def evaluate(self, seconds: float) -> Measured:
        """See `Worker.evaluate`. The whole test set each time, as a training run scores it."""
        metrics = {}

        def step() -> int:
            ranks = self.scorer.ranks(self.devices.get(self.state.params))
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
            "devices": self.devices.count,
            "device_peak_mb": stats["peak_bytes_in_use"] / 2**20 if "peak_bytes_in_use" in stats else None,
        }
