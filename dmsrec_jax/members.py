"""Many runs at once: models of one program that differ in seed and traced settings, trained on the same sessions.

Each member takes the very steps that `train` would take alone: its own initial values, dropout and orders.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from rich.console import Console

from dmsrec_jax.data import Split
from dmsrec_jax.epochs import epoch_steps, order_program, progress_bar
from dmsrec_jax.graphs import Budget, IntentRows, SessionGraphs, build_graphs
from dmsrec_jax.layers import Fixed
from dmsrec_jax.orders import batch_budget
from dmsrec_jax.parallel import Devices
from dmsrec_jax.steps import ModelProgram, TrainState, train_steps


class Start(NamedTuple):
    """A member before its first step."""

    fixed: nnx.State
    """The constants that differ from member to member, `layers.Fixed`."""
    state: TrainState
    order_key: jax.Array
    """Key of its epochs' orders."""


def split_constants(constants: nnx.State) -> tuple[nnx.State, nnx.State]:
    """A model's own constants (`layers.Fixed`), and those that all models of a data set share."""
    fixed, shared = nnx.split_state(constants, Fixed, ...)
    return fixed, shared


class MemberProgram:
    """Training sessions on the devices, and the one compiled program that trains an epoch of many members on them."""

    def __init__(
        self,
        rows: Split,
        batch_size: int,
        program: ModelProgram,
        devices: Devices,
        console: Console,
        intents: IntentRows | None = None,
    ) -> None:
        """Builds the graphs and moves them to every device.

        Args:
          rows: training sessions.
          batch_size: sessions per step of each member.
          program: a member's; all have the same but for their `Fixed` constants.
          devices: each trains members of its own.
          console: where progress is shown.
          intents: of the same sessions.
        """
        graphs = build_graphs(rows, intents=intents)
        self.steps, self._reports = epoch_steps(len(rows), batch_size)
        budget = batch_budget(graphs, batch_size, self.steps)
        self._order = partial(order_program(batch_size, self.steps), lengths=graphs.lengths)
        self._devices, self._n, self._console = devices, len(rows), console
        self._graphs = devices.put(graphs)
        self._shared = devices.put(split_constants(program.constants)[1])
        train = partial(train_member, graphdef=program.graphdef, budget=budget)
        self._program = devices.compile_members(train)
        self._compiled: Any = None

    def start(self, members: Sequence[Start]) -> float:
        """Takes up members, always as many and a multiple of the devices; returns the seconds that compiling took."""
        self._keys = [member.order_key for member in members]
        stack = partial(jax.tree.map, lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]))
        self._fixed = self._devices.deal(stack(*(member.fixed for member in members)))
        self._state = self._devices.deal(stack(*(member.state for member in members)))
        started = time.perf_counter()
        if self._compiled is None:
            call = self._call(self._orders(0)[0], 0)
            self._compiled = self._program.lower(*call).compile()
        return time.perf_counter() - started

    def run(self, epoch: int) -> np.ndarray:
        """Trains every member for an epoch; returns their mean losses, float [members]."""
        losses: list[np.ndarray] = []
        with progress_bar(self._console) as bar:
            total = self._n * len(self._keys)
            task = bar.add_task(f"epoch {epoch + 1}", total=total, rate="", loss="")
            started = time.perf_counter()
            for order in self._orders(epoch):
                self._state, values = self._compiled(*self._call(order, epoch))
                losses.append(self._devices.collect(values))
                done = total * len(losses) / self._reports
                rate = f"{done / (time.perf_counter() - started):,.0f} sessions/s"
                bar.update(task, completed=done, rate=rate, loss=f"loss {np.mean(losses[-1]):.4f}")
        return np.concatenate(losses, axis=1).astype(np.float64).mean(axis=1)

    def forget(self) -> None:
        """Gives up what `start` made: the next one may be of another number of members."""
        self._state = self._fixed = self._compiled = None

    def params(self) -> nnx.State:
        """All members' parameters on the host, [members, ...]."""
        return self._devices.collect(self._state.params)

    def _call(self, order: np.ndarray, epoch: int) -> tuple[Any, ...]:
        order = self._devices.deal(order)
        return self._shared, self._fixed, self._state, self._graphs, order, jnp.asarray(epoch)

    def _orders(self, epoch: int) -> list[np.ndarray]:
        """This epoch's sessions, one int32 [members, steps, B] per chunk."""
        orders = np.stack([np.asarray(self._order(jax.random.fold_in(key, epoch))) for key in self._keys])
        return np.split(orders, self._reports, axis=1)


def train_member(
    shared: nnx.State,
    fixed: nnx.State,
    state: TrainState,
    graphs: SessionGraphs,
    order: Int[Array, "steps B"],
    epoch: Int[Array, ""],
    *,
    graphdef: nnx.GraphDef,
    budget: Budget,
) -> tuple[TrainState, Float[Array, "steps"]]:
    """`steps.train_steps` with the model's constants in two parts."""
    return train_steps(nnx.merge_state(shared, fixed), state, graphs, order, epoch, graphdef=graphdef, budget=budget)
