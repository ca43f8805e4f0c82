"""Scores whole sets of sessions on the device: ranks of their targets, their top items, their logits."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from dmsrec_jax.config import DEVICE_DATA_MB
from dmsrec_jax.data.dataset import Sessions
from dmsrec_jax.feed import GraphFeed
from dmsrec_jax.graphs import IntentRows, SessionGraphs, build_graphs
from dmsrec_jax.orders import batch_budget, fixed_order
from dmsrec_jax.parallel import Devices
from dmsrec_jax.steps import ModelProgram, eval_logits, eval_ranks, eval_top

BATCH = 256
"""Sessions per evaluation step; results do not depend on it."""
CHUNK = 16
"""Evaluation steps between two progress reports."""

Progress = Callable[[int], None]


class Scorer:
    """Sessions ready to be scored on one device with any parameters of one model."""

    def __init__(
        self,
        program: ModelProgram,
        sessions: Sessions,
        n_positions: int,
        intents: IntentRows | None = None,
        device_data_mb: float = DEVICE_DATA_MB,
        parts: Sequence[np.ndarray] | None = None,
    ) -> None:
        """Builds the sessions' graphs and moves them to the device, or has them streamed.

        Args:
          program: the model.
          sessions: n sessions; a `Split` where ranks are wanted.
          n_positions: keep that many last clicks of a session.
          intents: of the same sessions; a fused model without any goes through its "no intent" vectors.
          device_data_mb: see `GraphFeed`; without effect on the results.
          parts: rows that are scored apart, by one program; all rows if left out.
        """
        graphs = build_graphs(sessions.last(n_positions), intents=intents)
        self._parts = [np.arange(len(sessions))] if parts is None else parts
        most = max(map(len, self._parts))
        batch = min(BATCH, max(most, 1))
        steps = -(-most // batch)
        self._program, self._n = program, len(sessions)
        self._orders = [fixed_order(graphs, batch, part, steps) for part in self._parts]
        budget = batch_budget(graphs, batch, steps, parts=self._parts)
        self._feed = GraphFeed(graphs, budget, Devices(1, BATCH), device_data_mb)
        static: dict[str, Any] = {"graphdef": program.graphdef, "budget": budget}
        self._ranks, self._logits = (jax.jit(partial(of, **static)) for of in (eval_ranks, eval_logits))
        self._top = jax.jit(partial(eval_top, **static), static_argnames=("k", "exclude_seen"))

    def ranks(self, params: nnx.State, constants: nnx.State | None = None) -> np.ndarray:
        """Ranks of the targets, int32 [n, 2]: raw, and with seen items excluded (see `metrics`).

        Args:
          params: the model's parameters.
          constants: those of another model of the same program; the model's own if left out.
        """
        return self._collect(partial(self._ranks, *self._model(params, constants)), lambda _: None)

    def top(
        self,
        params: nnx.State,
        k: int,
        *,
        exclude_seen: bool,
        progress: Progress,
        constants: nnx.State | None = None,
        part: int = 0,
    ) -> np.ndarray:
        """The best ``k`` items of each session of a part, best first, int32 [rows, k].

        Args:
          params: the model's parameters.
          k: items per session.
          exclude_seen: leave out the session's own items.
          progress: called with the number of sessions done since the last call.
          constants: see `ranks`.
          part: which of the parts.
        """
        top = partial(self._top, *self._model(params, constants), k=k, exclude_seen=exclude_seen)
        return self._collect(lambda *chunk: top(*chunk)[0], progress, part)

    def logits(self, params: nnx.State, sessions: np.ndarray) -> np.ndarray:
        """Logits of one batch, float32 [B, n_items + 1]; the padding column is -inf.

        Args:
          params: the model's parameters.
          sessions: int32 [B], a row of `fixed_order`, by these sessions' lengths or those before they were cut.
        """
        ((graphs, order),) = self._feed.chunks([sessions[None]])
        return np.asarray(self._logits(self._program.constants, params, graphs, order[0]))

    def _model(self, params: nnx.State, constants: nnx.State | None) -> tuple[nnx.State, nnx.State]:
        """Constants and parameters, sent to the device once for all chunks."""
        return jax.device_put((self._program.constants if constants is None else constants, params))

    def _collect(
        self, program: Callable[[SessionGraphs, jax.Array], jax.Array], progress: Progress, part: int = 0
    ) -> np.ndarray:
        """Runs ``program`` over equal chunks of a part's order and puts its rows back in the part's own order."""
        steps, batch = self._orders[part].shape
        chunks = -(-steps // CHUNK)
        padded = np.full((chunks * -(-steps // chunks), batch), self._n, np.int32)
        padded[:steps] = self._orders[part]
        rows = []
        parts = np.split(padded, chunks)
        for chunk, (graphs, order) in zip(parts, self._feed.chunks(parts), strict=True):
            rows.append(np.asarray(program(graphs, order)).reshape(chunk.size, -1))
            progress(int((chunk < self._n).sum()))
        result = np.empty((self._n + 1, rows[0].shape[1]), np.int32)
        result[padded.reshape(-1)] = np.concatenate(rows)
        return result[self._parts[part]]
