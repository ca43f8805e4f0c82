"""Data parallelism over devices, GPUs or the cores of a CPU, with `jax.pmap`; the model never sees it.

Each device packs its own share of a batch into one `GraphsTuple`; gradients are summed over devices, so N devices with
B / N sessions each take the step of one device with B. One device needs no pmap and gets plain `jax.jit`.
A sweep shares nothing among its members: each device trains its own ones, whole batches and all.
"""

import contextlib
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmsrec_jax.errors import InputError

AXIS = "data"


def split_cpu(wanted: int | None) -> None:
    """Makes cores devices of their own, unless jax has started or ``XLA_FLAGS`` says how many there are.

    For runs beside each other. A single run is the faster with one device, whose products XLA spreads over the cores.

    Args:
      wanted: that many, where there are the cores; all of them if None.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cores if wanted is None else max(min(wanted, cores), 1))


class Devices:
    """The devices of a run, and how values and programs get onto them."""

    def __init__(self, wanted: int | None, batch_size: int | None = None) -> None:
        """Takes the first ``wanted`` devices, or all. Without ``batch_size`` they do not share batches.

        Raises:
          InputError: there are fewer devices, or ``batch_size`` cannot be shared evenly.
        """
        available = jax.local_devices()
        self.count = len(available) if wanted is None else wanted
        if not 1 <= self.count <= len(available):
            raise InputError(f"--devices {self.count}: jax sees {len(available)} {available[0].platform} device(s)")
        if batch_size is not None and batch_size % self.count:
            raise InputError(f"--batch-size {batch_size}: not a multiple of the {self.count} devices")
        self._devices = available[: self.count]
        mesh = jax.sharding.Mesh(np.array(self._devices), (AXIS,))
        self._parts = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))

    def put(self, tree: Any, *, donated: bool = False) -> Any:
        """A pytree on every device; shares no memory with ``tree`` where a program is to be ``donated`` it."""
        if self.count == 1:
            return jax.tree.map(jnp.array, tree) if donated else self.scatter(tree)
        return self.scatter(jax.tree.map(lambda x: np.stack([np.asarray(x)] * self.count), tree))

    def scatter(self, tree: Any) -> Any:
        """Sends each device its own part: arrays [devices, ...], as of `shares`; whole arrays where there is one."""
        return jax.device_put(tree, self._devices[0] if self.count == 1 else self._parts)

    def deal(self, tree: Any) -> Any:
        """Shares members of a sweep, arrays [members, ...], evenly out to the devices."""
        if self.count == 1:
            return jax.device_put(tree, self._devices[0])
        dealt = jax.tree.map(lambda x: np.asarray(x).reshape(self.count, -1, *x.shape[1:]), tree)
        return jax.device_put(dealt, self._parts)

    def collect(self, tree: Any) -> Any:
        """What `deal` shared out, on the host."""
        tree = jax.device_get(tree)
        return tree if self.count == 1 else jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)

    def get(self, tree: Any) -> Any:
        """One device's copy of a pytree, on the host."""
        return jax.device_get(tree if self.count == 1 else jax.tree.map(lambda x: x[0], tree))

    def shares(self, order: np.ndarray) -> np.ndarray:
        """Splits each step's sessions [..., B] over the devices: [devices, ..., B / devices].

        Device k takes every N-th stratum from k on, so that all devices get sessions of all lengths.
        """
        if self.count == 1:
            return order
        return np.moveaxis(order.reshape(*order.shape[:-1], -1, self.count), -1, 0)

    def compile_training(self, train_steps: Callable[..., Any], **static: Any) -> Any:
        """Compiles `steps.train_steps` for these devices, with its state donated."""
        if self.count == 1:
            return jax.jit(partial(train_steps, **static), donate_argnums=1)
        program = partial(train_steps, axis=AXIS, **static)
        return jax.pmap(program, axis_name=AXIS, in_axes=(0, 0, 0, 0, None), donate_argnums=1, devices=self._devices)

    def compile_members(self, train_member: Callable[..., Any]) -> Any:
        """Compiles the training of many members at once, their states donated.

        Args:
          train_member: (constants that members share, constants of its own, state, graphs, order, epoch) → (state,
            losses).

        Returns:
          The same over members: what is a member's own has the form that `deal` gives it; the rest that of `put`.
        """
        many = jax.vmap(train_member, in_axes=(None, 0, 0, None, 0, None))

        def program(shared: Any, fixed: Any, state: Any, graphs: Any, order: jax.Array, epoch: jax.Array) -> Any:
            if len(order) > 1:
                return many(shared, fixed, state, graphs, order, epoch)
            # A single one is the program of `train`: under vmap it would compute every alignment, to choose one.
            alone = partial(jax.tree.map, lambda leaf: leaf[0])
            done = train_member(shared, alone(fixed), alone(state), graphs, order[0], epoch)
            return jax.tree.map(lambda leaf: leaf[None], done)

        if self.count == 1:
            return jax.jit(program, donate_argnums=2)
        return jax.pmap(program, in_axes=(0, 0, 0, 0, 0, None), donate_argnums=2, devices=self._devices)
