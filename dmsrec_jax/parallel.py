"""Data parallelism over devices with `jax.pmap`; the model never sees it.

Each device packs its own share of a batch into one `GraphsTuple`; gradients are summed over devices, so N devices with
B / N sessions each take the step of one device with B. One device needs no pmap and gets plain `jax.jit`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmsrec_jax.errors import InputError

AXIS = "data"


class Devices:
    """The devices of a run, and how values and programs get onto them."""

    def __init__(self, wanted: int | None, batch_size: int) -> None:
        """Takes the first ``wanted`` devices, or all.

        Raises:
          InputError: there are fewer devices, or ``batch_size`` cannot be shared evenly.
        """
        available = jax.local_devices()
        self.count = len(available) if wanted is None else wanted
        if not 1 <= self.count <= len(available):
            raise InputError(f"--devices {self.count}: jax sees {len(available)} {available[0].platform} device(s)")
        if batch_size % self.count:
            raise InputError(f"--batch-size {batch_size}: not a multiple of the {self.count} devices")
        self._devices = available[: self.count]
        mesh = jax.sharding.Mesh(np.array(self._devices), (AXIS,))
        self._parts = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))

    def put(self, tree: Any) -> Any:
        """Copies a pytree to every device."""
        if self.count == 1:
            return jax.tree.map(jnp.array, tree)
        stacked = jax.tree.map(lambda x: np.stack([np.asarray(x)] * self.count), tree)
        # pmap refuses a tree without arrays, such as the constants of a model that has none.
        return jax.pmap(lambda x: x, devices=self._devices)(stacked) if jax.tree.leaves(tree) else tree

    def scatter(self, tree: Any) -> Any:
        """Sends each device its own part: arrays [devices, ...], as of `shares`; whole arrays where there is one."""
        return jax.device_put(tree, self._devices[0] if self.count == 1 else self._parts)

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
