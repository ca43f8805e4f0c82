"""Scores of all items, some at a time: what bounds memory for any catalogue, and on a CPU stays in its caches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

CACHED = 3 * 2**19
"""Products of rows and items computed together on a CPU, 6 MiB."""
LARGE = 2**24
"""The same elsewhere, 64 MiB."""
ALIGNED = 256
"""Blocks of a multiple of so many items are up to a fifth faster."""
FEW = 32
"""Blocks that a program holds one after the other, without a loop."""

Blocks = list[Array] | Array
"""A list of few blocks, the last one with what is left; or more of them in one array, zeros in the last one."""


def items_at_once(rows: int) -> int:
    """Items whose products with so many rows this machine computes well together."""
    products = CACHED if jax.default_backend() == "cpu" else LARGE
    return max(products // rows // ALIGNED, 1) * ALIGNED


def cut_blocks(items: Float[Array, "items columns"], size: int, *, loop: bool = False) -> Blocks:
    """Rows in blocks of ``size``: [block, columns] each; with ``loop`` few blocks, too, in one array.

    Only in a loop is surely computed again what is not to be kept: elsewhere the compiler sees that it has it.
    """
    if len(items) <= FEW * size and not loop:
        return [items[at : at + size] for at in range(0, len(items), size)]
    return jnp.pad(items, ((0, -len(items) % size), (0, 0))).reshape(-1, size, items.shape[1])


def cut_columns(scores: Float[Array, "B items"], size: int, *, loop: bool = False) -> Blocks:
    """The columns of the items in each block of `cut_blocks`: [B, block] each."""
    blocks = cut_blocks(scores.T, size, loop=loop)
    return [block.T for block in blocks] if isinstance(blocks, list) else jnp.moveaxis(blocks, 1, 2)


def over_blocks(one: Callable[..., tuple[Any, Any]], state: Any, *blocks: Any) -> tuple[Any, tuple[Any, ...]]:
    """``one(state, *blocks) -> (state, results)`` for block after block: the last state, and each result's blocks.

    Like `jax.lax.scan`, but few blocks need no loop, which would copy all that it returns into arrays of all blocks.
    """
    if not isinstance(blocks[0], list):
        return jax.lax.scan(lambda state, at: one(state, *at), state, blocks)
    results = []
    for at in zip(*blocks, strict=True):
        state, result = one(state, *at)
        results.append(result)
    return state, tuple(list(of_all) for of_all in zip(*results, strict=True))


def join_blocks(blocks: Blocks, n_items: int) -> Float[Array, "B items"]:
    """Columns of blocks side by side, without those of the filling."""
    if isinstance(blocks, list):
        return jnp.concatenate(blocks, axis=1)
    return jnp.moveaxis(blocks, 0, 1).reshape(blocks.shape[1], -1)[:, :n_items]
