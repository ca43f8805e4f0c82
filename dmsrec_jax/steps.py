"""Pure programs over packed batches: many training steps, ranks of an evaluation set, top items, logits."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dmsrec_jax.graphs import Budget, SessionBatch, SessionGraphs, pack
from dmsrec_jax.layers import Unpenalised
from dmsrec_jax.metrics import out_of_reach
from dmsrec_jax.model import Hyper, SessionModel


class TrainState(NamedTuple):
    """All that training changes, or that a sweep varies: a pytree."""

    step: Int[Array, ""]
    params: nnx.State
    opt_state: optax.OptState
    rng: Array
    """Key data; a step's key is this one folded with ``step``."""
    hyper: Hyper


class ModelProgram(NamedTuple):
    """The untrained half of a split model: its structure (static) and the constants it carries."""

    graphdef: nnx.GraphDef
    constants: nnx.State


ADAM = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


def split_model(model: SessionModel) -> tuple[ModelProgram, nnx.State]:
    """Splits a module once into structure with constants, and parameters."""
    graphdef, params, constants = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    return ModelProgram(graphdef, constants), params


def initial_state(params: nnx.State, hyper: Hyper, key: PRNGKeyArray) -> TrainState:
    """The state before the first step."""
    as_array = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hyper)
    return TrainState(jnp.zeros((), jnp.int32), params, ADAM.init(params), jax.random.key_data(key), as_array)


def learning_rate(hyper: Hyper, epoch: Int[Array, ""]) -> Float[Array, ""]:
    """Step decay: a factor after ``lr_first_decay`` epochs, and again every ``lr_decay_every``."""
    # Half an epoch more, because a GPU may divide 3 by 3 to just below 1.
    since = epoch - hyper.lr_first_decay + 0.5
    decays = jnp.where(epoch < hyper.lr_first_decay, 0.0, 1.0 + jnp.floor(since / hyper.lr_decay_every))
    return hyper.lr * hyper.lr_decay**decays


def train_steps(
    constants: nnx.State,
    state: TrainState,
    graphs: SessionGraphs,
    order: Int[Array, "steps B"],
    epoch: Int[Array, ""],
    *,
    graphdef: nnx.GraphDef,
    budget: Budget,
    axis: str | None = None,
) -> tuple[TrainState, Float[Array, "steps"]]:
    """Consecutive optimiser steps as one `lax.scan`.

    Args:
      constants: the model's constants.
      state: donated by the caller.
      graphs: training sessions, on the device.
      order: sessions of each step; with ``axis``, this device's share of them.
      epoch: from 0, for the learning rate.
      graphdef: static.
      budget: static.
      axis: name of the device axis under `jax.pmap`; gradients are then summed over all devices' sessions.

    Returns:
      The state after the last step, and each step's loss, eq. (15).
    """
    lr = learning_rate(state.hyper, epoch)

    def total(tree: Any) -> Any:
        return tree if axis is None else jax.lax.psum(tree, axis)

    def everywhere(rows: Array) -> Array:
        """All devices' rows, in the order that one device alone would have them: `parallel.Devices.shares`."""
        if axis is None:
            return rows
        gathered = jax.lax.all_gather(rows, axis, axis=1)
        return gathered.reshape(-1, *rows.shape[1:])

    devices = total(1)  # each of them adds up the alignment of the whole batch

    def step(state: TrainState, sessions: Int[Array, "B"]) -> tuple[TrainState, Float[Array, ""]]:
        batch = pack(graphs, sessions, budget)
        of_all = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        key = of_all if axis is None else jax.random.fold_in(of_all, jax.lax.axis_index(axis))
        # Not 0: with batches of one session there are empty ones.
        count = jnp.maximum(total(jnp.sum(batch.length > 0, dtype=jnp.float32)), 1.0)

        def loss(params: nnx.State) -> Float[Array, ""]:
            model = nnx.merge(graphdef, params, constants)
            recommendation, alignment = model.loss(batch, state.hyper, key, everywhere, of_all)
            return recommendation / count + alignment / devices

        value, gradients = jax.value_and_grad(loss)(state.params)
        value, gradients = total((value, gradients))
        params, opt_state = apply_adam(state, gradients, lr)
        return TrainState(state.step + 1, params, opt_state, state.rng, state.hyper), value

    return jax.lax.scan(step, state, order)


def apply_adam(state: TrainState, gradients: nnx.State, lr: Float[Array, ""]) -> tuple[nnx.State, optax.OptState]:
    """One step of torch's Adam: L2 is added to the gradient, not decoupled."""

    def penalise(gradient: nnx.Variable, parameter: nnx.Variable) -> nnx.Variable:
        if isinstance(parameter, Unpenalised):
            return gradient
        return jax.tree.map(lambda g, p: g + state.hyper.l2 * p, gradient, parameter)

    penalised = jax.tree.map(penalise, gradients, state.params, is_leaf=lambda node: isinstance(node, nnx.Variable))
    updates, opt_state = ADAM.update(penalised, state.opt_state)
    return jax.tree.map(lambda p, u: p - lr * u, state.params, updates), opt_state


def target_ranks(logits: Float[Array, "B items"], batch: SessionBatch) -> Int[Array, "B 2"]:
    """Ranks of the targets, raw and with seen items excluded, as `metrics.rank_targets` defines them."""
    n_items, n = logits.shape[1] - 1, batch.n_sessions
    own = jnp.take_along_axis(logits, batch.target[:, None], axis=1)
    # XLA may compute a score again where it is gathered, rounded otherwise: a target must not be compared with itself.
    others = jnp.arange(1, n_items + 1) != batch.target[:, None]
    raw = 1 + jnp.sum(others & ~(logits[:, 1:] < own), axis=1)
    session = jnp.minimum(batch.node_session, n - 1)
    items = batch.graph.nodes
    real = batch.node_session < n
    is_target = items == batch.target[session]
    ahead = ~(logits[session, items] < own[session, 0]) & ~is_target & real
    seen_ahead = batch.sum_sessions(ahead.astype(jnp.int32), batch.node_session)
    target_seen = batch.sum_sessions((is_target & real).astype(jnp.int32), batch.node_session) > 0
    return jnp.stack([raw, jnp.where(target_seen, out_of_reach(n_items), jnp.maximum(raw - seen_ahead, 1))], axis=1)


def without_seen(logits: Float[Array, "B items"], batch: SessionBatch) -> Float[Array, "B items"]:
    """Logits whose own session's items are -inf."""
    padded = jnp.pad(logits, ((0, 1), (0, 0)))
    return padded.at[batch.node_session, batch.graph.nodes].set(-jnp.inf)[:-1]


def eval_ranks(
    constants: nnx.State,
    params: nnx.State,
    graphs: SessionGraphs,
    order: Int[Array, "steps B"],
    *,
    graphdef: nnx.GraphDef,
    budget: Budget,
) -> Int[Array, "steps B 2"]:
    """Ranks of all targets in one program; rows of empty places mean nothing."""
    model = nnx.merge(graphdef, params, constants)
    vectors = model.item_vectors()

    def ranks(sessions: Int[Array, "B"]) -> Int[Array, "B 2"]:
        batch = pack(graphs, sessions, budget)
        return target_ranks(model(batch, vectors=vectors), batch)

    return jax.lax.map(ranks, order)


def eval_logits(
    constants: nnx.State,
    params: nnx.State,
    graphs: SessionGraphs,
    sessions: Int[Array, "B"],
    *,
    graphdef: nnx.GraphDef,
    budget: Budget,
) -> Float[Array, "B items"]:
    """The logits of one batch; the padding column is -inf."""
    return nnx.merge(graphdef, params, constants)(pack(graphs, sessions, budget))


def eval_top(
    constants: nnx.State,
    params: nnx.State,
    graphs: SessionGraphs,
    order: Int[Array, "steps B"],
    *,
    graphdef: nnx.GraphDef,
    budget: Budget,
    k: int,
    exclude_seen: bool,
) -> tuple[Int[Array, "steps B k"], Float[Array, "steps B k"]]:
    """The best k items and their logits for each session, best first, in one program."""
    model = nnx.merge(graphdef, params, constants)
    vectors = model.item_vectors()

    def top(sessions: Int[Array, "B"]) -> tuple[Int[Array, "B k"], Float[Array, "B k"]]:
        batch = pack(graphs, sessions, budget)
        logits = model(batch, vectors=vectors)
        scores, items = jax.lax.top_k(without_seen(logits, batch) if exclude_seen else logits, k)
        return items, scores

    return jax.lax.map(top, order)
