"""Which sessions meet in a batch, and the sizes that no such batch exceeds."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from dmsrec_jax.graphs import Budget, SessionGraphs


def stratified_order(key: jax.Array, lengths: Int[Any, "n"], sessions: int, steps: int) -> Int[Array, "steps B"]:
    """A random order of all sessions, as ``steps`` batches of ``sessions``; each session occurs once.

    Sessions are sorted by length (ties at random) and cut into B strata; each batch draws one session from each, so
    that batches are as alike in clicks as they can be. Empty places are filled with session n (the empty one).

    Args:
      key: PRNG key of this epoch.
      lengths: clicks per session.
      sessions: B.
      steps: batches; ``steps * B >= n``.
    """
    n = len(lengths)
    tie_key, batch_key = jax.random.split(key)
    shuffled = jax.random.permutation(tie_key, n)
    by_length = shuffled[jnp.argsort(jnp.asarray(lengths)[shuffled], stable=True)]
    strata = jnp.concatenate([jnp.full(sessions * steps - n, n, by_length.dtype), by_length]).reshape(sessions, steps)
    return jax.random.permutation(batch_key, strata, axis=1, independent=True).T


def fixed_order(
    graphs: SessionGraphs, sessions: int, rows: np.ndarray | None = None, steps: int | None = None
) -> np.ndarray:
    """The same strata without chance, for evaluation: int32 [steps, B] with each session once, n where empty.

    Args:
      graphs: of n sessions.
      sessions: B.
      rows: these sessions; all if left out.
      steps: as many as are needed, or more.
    """
    n = graphs.n_sessions
    rows = np.arange(n) if rows is None else rows
    steps = -(-len(rows) // sessions) if steps is None else steps
    by_length = rows[np.argsort(graphs.lengths[rows], kind="stable")]
    return np.append(np.full(sessions * steps - len(rows), n), by_length).reshape(sessions, steps).T.astype(np.int32)


def batch_budget(
    graphs: SessionGraphs,
    sessions: int,
    steps: int,
    devices: int = 1,
    parts: Sequence[np.ndarray | slice] = (slice(None),),
) -> Budget:
    """The smallest budget that no batch of `stratified_order` can exceed, per device.

    Each batch draws one session from each of ``sessions`` strata of ``steps`` sessions with neighbouring lengths, so
    the sum of the strata's maxima bounds it, and exceeds the mean by at most the longest session.

    Args:
      graphs: of all sessions.
      sessions: B, over all devices.
      steps: batches of an epoch.
      devices: that share a batch.
      parts: rows of the sessions that batches are drawn from, each part for itself.
    """
    budgets = [_part_budget(graphs, sessions, steps, devices, part) for part in parts]
    *sizes, lengths = zip(*budgets, strict=True)
    return Budget(*map(max, sizes))._replace(lengths=tuple(map(max, zip(*lengths, strict=True))))


def _part_budget(graphs: SessionGraphs, sessions: int, steps: int, devices: int, rows: np.ndarray | slice) -> Budget:
    lengths = graphs.lengths[rows]
    by_length = np.argsort(lengths, kind="stable")
    # Sessions of equal length change places between epochs: each stratum may hold any of its lengths.
    last_alike = np.searchsorted(lengths[by_length], lengths[by_length], side="right") - 1

    def largest(sizes: np.ndarray) -> np.ndarray:
        """Most of each stratum, shortest sessions first, [sessions per device, devices]."""
        bound = np.maximum.accumulate(sizes[by_length])[last_alike]
        strata = np.append(np.zeros(sessions * steps - len(bound), np.int64), bound).reshape(sessions, steps).max(1)
        return strata.reshape(-1, devices)

    def most(offsets: np.ndarray) -> int:
        return int(largest(np.diff(offsets)[:-1][rows]).sum(0).max())

    nodes, edges, clicks = map(most, (graphs.node_offsets, graphs.edge_offsets, graphs.click_offsets))
    intents = 0 if graphs.intents is None else most(graphs.intents.offsets[::2])
    fixed = sessions // devices, _round_up(nodes + 1), _round_up(max(edges, 1)), _round_up(clicks)
    return Budget(*fixed, _round_up(intents), tuple(largest(lengths).max(1)[::-1].tolist()))


def _round_up(size: int, multiple: int = 16) -> int:
    return -(-size // multiple) * multiple
