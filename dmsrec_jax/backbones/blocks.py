"""Scores of all items, some at a time: what bounds memory for any catalogue, and on a CPU stays in its caches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

CACHED = 3 * 2**19
"""Products of rows and items computed together on a CPU, 6 MiB."""
LARGE = 2**24
"""The same elsewhere, 64 MiB; and how many may wait for the gradient."""
ALIGNED = 256
"""Blocks of a multiple of so many items are up to a fifth faster."""

Blocks = list[Array] | Array
"""A list of blocks, the last one with what is left; or one array of them, zeros in the last one."""


class Cut(NamedTuple):
    """How a catalogue is cut into blocks."""

    size: int
    """Items of a block."""
    loop: bool
    """Whether blocks take turns in a loop, and with them memory. A loop copies all that it returns into arrays of all
    blocks; without one the compiler keeps what it will need again."""


def cut_for(rows: int, n_items: int) -> Cut:
    """The cut that suits this machine for the products of so many rows with all items."""
    products = CACHED if jax.default_backend() == "cpu" else LARGE
    return Cut(max(products // rows // ALIGNED, 1) * ALIGNED, rows * n_items > LARGE)


def cut_blocks(items: Float[Array, "items columns"], cut: Cut) -> Blocks:
    """Rows in blocks, [block, columns] each."""
    size = min(cut.size, len(items))
    if not cut.loop:
        return [items[at : at + size] for at in range(0, len(items), size)]
    return jnp.pad(items, ((0, -len(items) % size), (0, 0))).reshape(-1, size, items.shape[1])


def cut_columns(scores: Float[Array, "B items"], cut: Cut) -> Blocks:
    """The columns of the items in each block of `cut_blocks`, [B, block] each."""
    blocks = cut_blocks(scores.T, cut)
    return [block.T for block in blocks] if isinstance(blocks, list) else jnp.moveaxis(blocks, 1, 2)


def over_blocks(one: Callable[..., tuple[Any, Any]], state: Any, *blocks: Any) -> tuple[Any, tuple[Any, ...]]:
    """``one(state, *blocks) -> (state, results)`` for block after block: the last state, and each result's blocks."""
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
