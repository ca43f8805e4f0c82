"""Small models and packed sessions for the tests of single backbones."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dmsrec_jax.data import Sessions
from dmsrec_jax.graphs import SessionBatch, build_graphs, pack
from dmsrec_jax.model import ModelSettings, SessionModel
from dmsrec_jax.orders import batch_budget
from dmsrec_jax.runs import new_model
from tests.conftest import N_ITEMS, random_sessions

N = 12
SESSIONS = random_sessions(3, N)
LENGTH = int(SESSIONS.lengths.max())


def build(backbone: str, d: int = 6, score: str = "dot", graph: Any = None, **settings: Any) -> SessionModel:
    """A model with initial values of a fixed seed."""
    of_model = ModelSettings(backbone, N_ITEMS, d, score, LENGTH, **settings)
    program, params = new_model(of_model, graph, jax.random.key(2))
    return nnx.merge(program.graphdef, params, program.constants)


@nnx.jit
def scores(built: SessionModel, data: SessionBatch, *dropout: Any) -> jax.Array:
    """The model's scores, compiled as one program: operation by operation it takes much longer."""
    return built(data, *dropout)


@nnx.jit
def read(built: SessionModel, data: SessionBatch) -> Any:
    """What the backbone reads of the sessions, compiled likewise."""
    return built.backbone(built.item_vectors(), data)


def batch(
    rows: Sequence[int] | np.ndarray = range(N),
    sessions: Sessions = SESSIONS,
    **sizes: Any,
) -> SessionBatch:
    """These sessions packed; row N is empty. ``sizes`` replace those of the smallest budget."""
    graphs = build_graphs(sessions)
    budget = batch_budget(graphs, len(rows), 1)._replace(**sizes)
    return pack(jax.tree.map(jnp.asarray, graphs), jnp.asarray(rows), budget)
