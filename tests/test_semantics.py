"""Properties of fusion, for every backbone and both semantics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dmsrec_jax.alignment import ALIGNMENTS
from dmsrec_jax.backbones import BACKBONES, reads
from dmsrec_jax.graphs import Budget, build_graphs, pack
from dmsrec_jax.intents import intent_rows
from dmsrec_jax.item_graph import read_sessions
from dmsrec_jax.model import Hyper, ModelSettings
from dmsrec_jax.orders import batch_budget, stratified_order
from dmsrec_jax.runs import new_model
from dmsrec_jax.steps import initial_state, train_steps
from tests.conftest import N_ITEMS, random_intents, random_sessions

N, D, D_TEXT = 24, 6, 5
SESSIONS = random_sessions(1, N)
TARGETS = np.random.default_rng(2).integers(1, N_ITEMS + 1, N).astype(np.int32)
EMBEDDINGS = np.random.default_rng(3).normal(size=(9, D_TEXT)).astype(np.float16)
INTENTS = random_intents(np.random.default_rng(4), N, 9)
GRAPHS = build_graphs(SESSIONS, TARGETS, intent_rows(INTENTS, EMBEDDINGS))
UNREAD = np.flatnonzero((np.diff(INTENTS.explicit.offsets) == 0) & (np.diff(INTENTS.latent.offsets) == 0))
BARE = GRAPHS._replace(intents=None)
HYPER = Hyper(1e-2, 0.1, 3, 3, 1e-5, align=1, align_weight=0.7, alpha=1.0, beta=0.5)
SIZE = len(SESSIONS.items) + 16
PACK = jax.jit(pack, static_argnames="budget")
FORMS = [(name, "paper") for name in BACKBONES] + [("msgifsr", "paper", 2)]
FORMS += [(name, "released") for name, backbone in BACKBONES.items() if hasattr(backbone, "RELEASED")]
TRAINED = [("srgnn", "paper"), ("srgnn", "released")]
"""Gradients of the others: tests/parity, tests/test_model.py."""


def new(backbone: str, semantics: str | None, order: int = 1, ablation: str = "none"):
    graph = read_sessions(reads(backbone), SESSIONS, N_ITEMS, 3)
    settings = ModelSettings(backbone, N_ITEMS, D, "dot", 9, 3, semantics, D_TEXT, ablation, order=order)
    return new_model(settings, graph, jax.random.key(2))


def batch(rows, graphs=GRAPHS, more: int = 0):
    """Packed sessions, of one shape but for ``more`` padding: the empty session fills up."""
    budget = Budget(N + 3 + more, *(SIZE + 16 * more for _ in range(3)), intents=128 + 16 * more)
    rows = np.append(rows, np.full(budget.sessions - len(rows), N)).astype(np.int32)
    return PACK(jax.tree.map(jnp.asarray, graphs), jnp.asarray(rows), budget=budget)


def form_id(form: tuple) -> str:
    return "-".join(map(str, form))


@pytest.fixture(scope="module", params=FORMS, ids=form_id)
def built(request):
    return new(*request.param)


@partial(jax.jit, static_argnums=0)
def _fuse(graphdef, params, constants, data, hyper, key):
    built = nnx.merge(graphdef, params, constants)
    sessions = built.represent(built.item_vectors(), data, hyper, key)
    return sessions.fused, built.score(sessions, built.item_vectors())


def fuse(built, data, hyper: Hyper | None = None, key=None):
    program, params = built
    return _fuse(program.graphdef, params, program.constants, data, hyper, key)[0]


def scores(built, data):
    program, params = built
    return np.asarray(_fuse(program.graphdef, params, program.constants, data, None, None)[1])


@partial(jax.jit, static_argnums=0)
def _loss_and_gradients(graphdef, params, constants, data, hyper):
    def loss(params):
        recommendation, alignment = nnx.merge(graphdef, params, constants).loss(data, hyper)
        return recommendation + alignment

    return jax.value_and_grad(loss)(params)


def loss_and_gradients(built, hyper: Hyper, data):
    program, params = built
    return _loss_and_gradients(program.graphdef, params, program.constants, data, hyper)


def test_some_sessions_have_no_intents():
    assert 0 < len(UNREAD) < N


def test_a_session_scores_the_same_in_any_company(built):
    together = scores(built, batch(np.arange(N)))
    for row in (0, 7, UNREAD[0]):
        np.testing.assert_allclose(scores(built, batch([N, row, N], more=2))[1], together[row], atol=1e-5)


@pytest.mark.parametrize("built", TRAINED, indirect=True, ids=form_id)
@pytest.mark.parametrize("align", range(len(ALIGNMENTS)), ids=ALIGNMENTS)
def test_padding_and_empty_places_change_neither_loss_nor_gradients(built, align):
    hyper = HYPER._replace(align=align)
    value, gradients = loss_and_gradients(built, hyper, batch(np.arange(N)))
    shuffled = np.insert(np.random.default_rng(0).permutation(N), [0, 5, 9], N)
    wide_value, wide_gradients = loss_and_gradients(built, hyper, batch(shuffled, more=2))
    assert float(value) == pytest.approx(float(wide_value), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradients, wide_gradients)
    for rows in ([], [UNREAD[0]], [0]):
        _, gradients = loss_and_gradients(built, hyper, batch(rows))
        assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients))


def test_intents_matter_only_where_there_are_any(built):
    read, unread = (scores(built, batch(np.arange(N), graphs)) for graphs in (GRAPHS, BARE))
    moved = np.abs(read - unread)[:N, 1:].max(1) > 1e-4
    program, params = built
    semantics = nnx.merge(program.graphdef, params, program.constants).semantics
    unmoved = UNREAD if getattr(semantics, "fuses", True) else np.arange(N)  # the released MSGIFSR fuses nothing
    np.testing.assert_array_equal(np.flatnonzero(~moved), unmoved)


@pytest.mark.parametrize("built", TRAINED, indirect=True, ids=form_id)
def test_zero_vectors_give_finite_gradients(built):
    silent = GRAPHS._replace(intents=GRAPHS.intents._replace(embeddings=np.zeros_like(EMBEDDINGS)))
    for align in range(len(ALIGNMENTS)):
        _, gradients = loss_and_gradients(built, HYPER._replace(align=align), batch(np.arange(N), silent))
        assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize(("ablation", "left_out"), [("no-latent", "latent"), ("no-explicit", "explicit")])
def test_what_is_left_out_has_no_influence(ablation, left_out):
    built = new("srgnn", "paper", ablation=ablation)
    other = INTENTS._replace(**{left_out: getattr(random_intents(np.random.default_rng(9), N, 9), left_out)})
    changed = GRAPHS._replace(intents=intent_rows(other, EMBEDDINGS))
    results = [loss_and_gradients(built, HYPER, batch(np.arange(N), graphs)) for graphs in (GRAPHS, changed)]
    for one, two in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    whole = [loss_and_gradients(new("srgnn", "paper"), HYPER, batch(np.arange(N), g))[0] for g in (GRAPHS, changed)]
    assert float(whole[0]) != pytest.approx(float(whole[1]), abs=1e-4)


def test_dropping_every_intent_is_having_none(built):
    data, key = batch(np.arange(N)), jax.random.key(0)
    bare = fuse(built, batch(np.arange(N), BARE))
    dropped = fuse(built, data, HYPER._replace(intent_dropout=1.0), key)
    np.testing.assert_allclose(dropped.z, bare.z, atol=1e-6)
    assert not dropped.aligned.any()
    some = fuse(built, data, HYPER._replace(intent_dropout=0.5), key)
    assert 0 < int(some.aligned.sum()) < N - len(UNREAD)


@pytest.mark.parametrize("built", TRAINED, indirect=True, ids=form_id)
def test_no_intent_vectors_are_learned_where_intents_are_absent(built):
    read = np.setdiff1d(np.arange(N), UNREAD)
    for rows, learned in ((UNREAD[:1], True), (read[:3], False)):
        _, gradients = loss_and_gradients(built, HYPER, batch(rows))
        assert bool(jnp.abs(gradients["semantics"]["no_intent"][...]).max() > 0) == learned


def test_any_switches_one_program():
    """Weights, alignments, dropout rates and ablations are traced: none of them compiles anew."""
    program, params = new("srgnn", "paper")
    _, other = new("srgnn", "paper", ablation="no-latent")
    ablated = new("srgnn", "paper", ablation="no-explicit")[0].constants
    graphs = jax.tree.map(jnp.asarray, GRAPHS)
    steps = 3
    budget = batch_budget(GRAPHS, 8, steps)
    traced = []

    def counted(*arguments):
        traced.append(arguments)
        return train_steps(*arguments, graphdef=program.graphdef, budget=budget)

    run = jax.jit(counted)
    order = stratified_order(jax.random.key(0), SESSIONS.lengths, 8, steps)
    losses = []
    base = HYPER._replace(semantic_dropout=0.1, intent_dropout=0.1)
    changes = [{"align": kind} for kind in range(len(ALIGNMENTS))]
    changes += [
        {"align_weight": 0.0},
        {"alpha": 3.0},
        {"beta": 0.0},
        {"intent_dropout": 0.9},
        {"semantic_dropout": 0.5},
    ]
    for change in changes:
        state = initial_state(params, base._replace(**change), jax.random.key(1))
        losses.append(float(run(program.constants, state, graphs, order, jnp.asarray(0))[1].sum()))
    losses.append(
        float(run(ablated, initial_state(other, base, jax.random.key(1)), graphs, order, jnp.asarray(0))[1].sum())
    )
    assert len(traced) == 1
    assert losses[0] == pytest.approx(losses[len(ALIGNMENTS)], rel=1e-6), "no alignment is an alignment of no weight"
    del losses[0]
    assert len({round(loss, 5) for loss in losses}) == len(losses)
