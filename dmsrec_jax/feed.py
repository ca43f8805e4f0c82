"""Session graphs for the devices' programs: kept on the devices, or gathered on the host and sent ahead in chunks.

A streamed chunk holds just its own sessions, as a smaller `SessionGraphs` of fixed sizes: the same program packs its
batches, compiled once, with the same results.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

from dmsrec_jax.graphs import Budget, SessionGraphs, pad_graphs
from dmsrec_jax.parallel import Devices

IN_FLIGHT = 3
"""Chunks that a device may hold at once: one used up, one computed on, one under way."""


class GraphFeed:
    """Graphs of all sessions, handed to the devices with each chunk of an order."""

    def __init__(self, graphs: SessionGraphs, budget: Budget, devices: Devices, device_data_mb: float) -> None:
        """Moves the graphs to the devices, or keeps them on the host if they are too large.

        Args:
          graphs: numpy arrays.
          budget: of one step's batch on one device.
          devices: where the chunks go.
          device_data_mb: most MB (2^20 bytes) of graphs that stay on a device; encoded intents always do.
        """
        limit = device_data_mb * 2**20
        self._embeddings = None
        if graphs.intents is not None:  # each distinct intent once, whatever the sessions
            self._embeddings = devices.put(graphs.intents.embeddings)
            graphs = graphs._replace(intents=graphs.intents._replace(embeddings=None))
        size = sum(array.nbytes for array in jax.tree.leaves(graphs))
        self.streams = size > limit
        self._least = -(-IN_FLIGHT * size // limit) if limit else np.inf
        self._graphs = graphs if self.streams else self._with_embeddings(devices.put(graphs))
        self._budget, self._devices = budget, devices

    def chunk_count(self, steps: int, wanted: int) -> int:
        """How many equal chunks to cut ``steps`` into: ``wanted``, which divides them, or more to stay in memory."""
        least = max(wanted, self._least) if self.streams else wanted
        return next((n for n in range(wanted, steps) if n >= least and steps % n == 0), steps)

    def chunks(self, parts: Sequence[np.ndarray]) -> Iterator[tuple[SessionGraphs, jax.Array]]:
        """Each part of an order with its graphs, on the devices; while one is computed on, the next is prepared.

        Args:
          parts: sessions, int32 [steps, B] each, or `Devices.shares` of such; all of one shape.
        """
        if not self.streams:
            yield from ((self._graphs, self._devices.scatter(part)) for part in parts)
            return
        coming: deque[Future[tuple[SessionGraphs, jax.Array]]] = deque()
        with ThreadPoolExecutor(1) as host:
            for part in parts:
                coming.append(host.submit(self._send, part))
                if len(coming) > 1:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()

    def _send(self, part: np.ndarray) -> tuple[SessionGraphs, jax.Array]:
        steps, sessions = part.shape[-2:]
        sizes = Budget(*(steps * size for size in self._budget[:-1]))  # without its lengths
        local = np.arange(steps * sessions, dtype=np.int32).reshape(steps, sessions)
        shares = part.reshape(-1, steps * sessions)  # a row per device
        chunks = [(pad_graphs(take_sessions(self._graphs, share), sizes), local) for share in shares]
        chunk = chunks[0] if part.ndim == 2 else jax.tree.map(lambda *arrays: np.stack(arrays), *chunks)
        graphs, order = self._devices.scatter(chunk)
        return self._with_embeddings(graphs), order

    def _with_embeddings(self, graphs: SessionGraphs) -> SessionGraphs:
        return graphs._replace(intents=graphs.intents and graphs.intents._replace(embeddings=self._embeddings))


def take_sessions(graphs: SessionGraphs, rows: np.ndarray) -> SessionGraphs:
    """The graphs of ``rows`` in that order, without the empty session at the end, which `pad_graphs` adds."""
    fields = graphs._asdict()
    values = {"targets": graphs.targets[rows]}
    for kind in ("node", "edge", "click"):
        values[f"{kind}_offsets"], at = _take_rows(fields[f"{kind}_offsets"], rows)
        values |= {n: a[at] for n, a in fields.items() if n.startswith(f"{kind}_") and not n.endswith("offsets")}
    if graphs.intents is None:
        return SessionGraphs(**values)
    offsets, at = _take_rows(graphs.intents.offsets, (2 * rows[:, None] + [0, 1]).reshape(-1))
    return SessionGraphs(**values, intents=graphs.intents._replace(offsets=offsets, ids=graphs.intents.ids[at]))


def _take_rows(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a CSR array: their own offsets, int32 [rows + 1], and the places of their elements."""
    starts = offsets[rows]
    sizes = offsets[rows + 1] - starts
    taken = np.append(0, np.cumsum(sizes)).astype(np.int32)
    return taken, np.arange(taken[-1]) + np.repeat(starts - taken[:-1], sizes)
