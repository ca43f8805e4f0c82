from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dmsrec_jax.backbones import BACKBONES, reads
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.data.samples import prefixes
from dmsrec_jax.graphs import Budget, SessionBatch, build_graphs, pack
from dmsrec_jax.item_graph import read_sessions
from dmsrec_jax.metrics import rank_targets
from dmsrec_jax.model import Hyper, ModelSettings, cross_entropy
from dmsrec_jax.orders import batch_budget, fixed_order, stratified_order
from dmsrec_jax.runs import new_model
from dmsrec_jax.steps import (
    apply_adam,
    eval_ranks,
    eval_top,
    initial_state,
    learning_rate,
    target_ranks,
    train_steps,
    without_seen,
)
from tests.conftest import N_ITEMS, random_sessions

HYPER = Hyper(lr=1e-2, lr_decay=0.1, lr_decay_every=3, lr_first_decay=3, l2=1e-5)
B = 16


@pytest.fixture(scope="module")
def graphs(tiny: SessionDataset):
    return jax.tree.map(jnp.asarray, build_graphs(tiny.train))


@pytest.fixture(scope="module", params=BACKBONES)
def model(request, tiny: SessionDataset):
    """Program and parameters of a small model of each backbone."""
    settings = ModelSettings(request.param, N_ITEMS, 8, "dot", int(tiny.train.lengths.max()), 4)
    graph = read_sessions(reads(request.param), tiny.sessions, N_ITEMS, 4)
    return new_model(settings, graph, jax.random.key(1))


@pytest.mark.parametrize(
    ("first", "rates"),
    [
        (2, [1e-3, 1e-3, 1e-4, 1e-4, 1e-4, 1e-5]),  # released SR-GNN: the schedule moves before the epoch
        (3, [1e-3, 1e-3, 1e-3, 1e-4, 1e-4, 1e-4, 1e-5]),  # released GCE-GNN: after it
    ],
)
def test_learning_rates_of_the_released_code(first, rates):
    hyper = Hyper(1e-3, 0.1, 3, first, 0.0)
    found = [float(learning_rate(hyper, jnp.asarray(epoch))) for epoch in range(len(rates))]
    np.testing.assert_allclose(found, rates, rtol=1e-5)


@pytest.mark.parametrize("inexact", [1.0, 1.0 + 2**-22, 1.0 - 2**-22])
def test_decays_are_counted_as_by_integers(inexact):
    """Also where a device divides a little wrong."""

    def rate(epoch, first, every):
        return learning_rate(Hyper(1.0, 0.5, every * inexact, first, 0.0), epoch)

    epoch, first, every = (axis.reshape(-1) for axis in np.mgrid[:100, :12, 1:12])
    expected = np.where(epoch < first, 0, 1 + (epoch - first) // every)
    np.testing.assert_array_equal(np.round(-np.log2(jax.jit(jax.vmap(rate))(epoch, first, every))), expected)


def test_adam_is_torchs():
    torch = pytest.importorskip("torch", reason="torch gives the reference")
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(5, 3)), rng.normal(size=(6, 5, 3)) * np.logspace(-6, 0, 6)[:, None, None]
    weight = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    optimiser = torch.optim.Adam([weight], lr=1e-2, weight_decay=0.1)
    state = initial_state(nnx.State({"w": nnx.Param(jnp.asarray(start, jnp.float32))}), HYPER, jax.random.key(0))
    state = state._replace(hyper=state.hyper._replace(l2=jnp.float32(0.1)))
    for gradient in gradients:
        weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimiser.step()
        ours = jax.tree.map(lambda _, g=gradient: jnp.asarray(g, jnp.float32), state.params)
        params, opt_state = apply_adam(state, ours, jnp.float32(1e-2))
        state = state._replace(params=params, opt_state=opt_state)
        (found,) = jax.tree.leaves(state.params)
        np.testing.assert_allclose(found, weight.detach().numpy(), atol=1e-6)


def packed(graphs, sessions: np.ndarray, extra: int = 0) -> SessionBatch:
    budget = Budget(len(sessions), *(16 * len(sessions) + 16 + extra for _ in range(3)))
    return jax.jit(pack, static_argnames="budget")(graphs, jnp.asarray(sessions), budget=budget)


@pytest.mark.parametrize("kind", ["distinct", "ties", "nan"])
def test_target_ranks_are_those_of_the_metrics(kind):
    rows = prefixes(random_sessions(5, 40))
    assert any(target in rows[i] for i, target in enumerate(rows.targets)), "seen targets are due"
    rng = np.random.default_rng(6)
    logits = rng.normal(size=(len(rows), N_ITEMS + 1)).astype(np.float32)
    if kind != "distinct":
        logits = np.round(logits)
    if kind == "nan":
        logits[rng.random(logits.shape) < 0.1] = np.nan
    logits[:, 0] = -np.inf
    session = np.repeat(np.arange(len(rows)), rows.lengths)
    expected = rank_targets(logits, rows.targets, session, rows.items)
    graphs = jax.tree.map(jnp.asarray, build_graphs(rows))
    batch = packed(graphs, np.append(np.arange(len(rows)), [len(rows)] * 3))  # and three empty places
    found = jax.jit(target_ranks)(jnp.asarray(np.pad(logits, ((0, 3), (0, 0)))), batch)
    np.testing.assert_array_equal(found[:-3], expected)


def test_without_seen_takes_away_nothing_else(tiny, graphs):
    sessions = np.array([3, 70, 5, len(tiny.train)])
    logits = np.random.default_rng(0).normal(size=(4, N_ITEMS + 1)).astype(np.float32)
    found = np.asarray(without_seen(jnp.asarray(logits), packed(graphs, sessions)))
    for row, session in enumerate(sessions[:-1]):
        seen = np.isin(np.arange(N_ITEMS + 1), tiny.train[session])
        assert (found[row, seen] == -np.inf).all()
        np.testing.assert_array_equal(found[row, ~seen], logits[row, ~seen])
    np.testing.assert_array_equal(found[-1], logits[-1])


@pytest.mark.parametrize("steps", [10, 13])
def test_an_epoch_counts_every_session_once(tiny, steps):
    n = len(tiny.train)
    for epoch in range(3):
        order = np.asarray(stratified_order(jax.random.key(epoch), tiny.train.lengths, B, steps))
        assert order.shape == (steps, B)
        np.testing.assert_array_equal(np.bincount(order.reshape(-1)), [1] * n + [steps * B - n])
    np.testing.assert_array_equal(np.unique(fixed_order(build_graphs(tiny.train), B)), np.arange(n + 1))


@partial(jax.jit, static_argnums=0)
def compiled_gradients(graphdef, params, constants, batch: SessionBatch):
    def loss(params):
        return cross_entropy(nnx.merge(graphdef, params, constants)(batch), batch) / jnp.sum(batch.length > 0)

    return jax.value_and_grad(loss)(params)


def loss_and_gradients(model, batch: SessionBatch):
    program, params = model
    return compiled_gradients(program.graphdef, params, program.constants, batch)


def test_extra_padding_changes_neither_loss_nor_gradients(tiny, graphs, model):
    sessions = np.random.default_rng(2).choice(len(tiny.train), B, replace=False)
    assert any(len(set(tiny.train[i])) < len(tiny.train[i]) for i in sessions), "repeated items are due"
    loss, gradients = loss_and_gradients(model, packed(graphs, sessions))
    filled = np.append(sessions, np.full(5, len(tiny.train)))
    other_loss, other = loss_and_gradients(model, packed(graphs, filled, extra=123))
    assert float(other_loss) == pytest.approx(float(loss), abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4), gradients, other)


def test_gradients_are_finite_even_for_an_empty_batch(tiny, graphs, model):
    for sessions in (np.arange(B), np.array([0] + [len(tiny.train)] * (B - 1))):
        loss, gradients = loss_and_gradients(model, packed(graphs, sessions))
        assert np.isfinite(loss)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_training_lowers_the_loss_and_skips_empty_places(request, tiny, graphs, model):
    program, params = model
    steps = 16
    budget = batch_budget(build_graphs(tiny.train), B, steps)
    run = jax.jit(train_steps, static_argnames=("graphdef", "budget", "axis"))
    state, means = initial_state(params, HYPER, jax.random.key(3)), []
    for epoch in range(3):
        order = stratified_order(jax.random.key(epoch), tiny.train.lengths, B, steps)
        epoch_now = jnp.asarray(epoch)
        state, losses = run(
            program.constants, state, graphs, order, epoch_now, graphdef=program.graphdef, budget=budget
        )
        assert losses.shape == (steps,)
        means.append(float(losses.mean()))
    assert int(state.step) == 3 * steps
    # Cosines × 12 are far from even before the first step; other scores are near 0.
    scale = getattr(BACKBONES[request.node.callspec.params["model"]], "SCALE", 1.0)
    assert means[0] == pytest.approx(np.log(N_ITEMS), abs=0.6 if scale == 1.0 else scale)
    assert means[2] < means[1] < means[0]


@pytest.mark.parametrize("model", ["srgnn"], indirect=True)
def test_evaluation_programs_agree_with_the_logits(tiny, graphs, model):
    program, params = model
    host = build_graphs(tiny.train)
    order = jnp.asarray(fixed_order(host, B))
    budget = batch_budget(host, B, len(order))
    static = {"graphdef": program.graphdef, "budget": budget}
    ranks = jax.jit(partial(eval_ranks, **static))(program.constants, params, graphs, order)
    top = jax.jit(partial(eval_top, k=N_ITEMS, exclude_seen=False, **static))
    items, scores = top(program.constants, params, graphs, order)
    scorer = jax.jit(lambda batch: nnx.merge(program.graphdef, params, program.constants)(batch))
    whole = scorer(packed(graphs, np.arange(len(tiny.train))))
    for sessions, rank, item, score in zip(np.asarray(order), ranks, items, scores, strict=True):
        real = sessions < len(tiny.train)
        targets = tiny.train.targets[sessions[real]]
        place = np.argmax(item[real] == targets[:, None], axis=1) + 1  # no ties among random scores
        np.testing.assert_array_equal(rank[real, 0], place)
        of_items = np.take_along_axis(np.asarray(whole)[sessions[real]], np.asarray(item)[real], axis=1)
        np.testing.assert_allclose(score[real], of_items, atol=1e-5)
