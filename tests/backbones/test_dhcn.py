"""The hypergraph's and the line graph's convolutions against their matrices, and what self-supervision may change."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dmsrec_jax.backbones import dhcn
from dmsrec_jax.backbones.dhcn import neighbourhood, others
from dmsrec_jax.data import Sessions
from dmsrec_jax.graphs import build_graphs
from dmsrec_jax.item_graph import build_members
from dmsrec_jax.model import Hyper, ModelSettings
from dmsrec_jax.orders import batch_budget
from dmsrec_jax.runs import new_model
from dmsrec_jax.steps import initial_state, train_steps
from tests.backbones.small import SESSIONS, N, batch, build
from tests.conftest import N_ITEMS, random_sessions
from tests.parity import golden

D = 6
HYPER = Hyper(1e-3, 0.1, 3, 3, 0.0, self_supervision=0.1)


def model(like: Sessions | None = None):
    return build("dhcn", graph=build_members(SESSIONS, N_ITEMS, like))


item_vectors = nnx.jit(lambda built: built.item_vectors())


def held() -> np.ndarray:
    """1 where a session holds an item, [N, N_ITEMS + 1]."""
    table = np.zeros((N, N_ITEMS + 1))
    for row in range(N):
        table[row, SESSIONS[row]] = 1
    return table


@pytest.fixture(params=[0, 10**6], ids=["sums", "matrix"])
def _either_form(request, monkeypatch):
    monkeypatch.setattr(dhcn, "DENSE", request.param)


@pytest.mark.usefixtures("_either_form")
def test_items_are_means_over_three_convolutions():
    built, h = model(), held()
    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = np.nan_to_num(h.T / h.sum(0)[:, None]) @ (h / h.sum(1)[:, None])
    table = np.asarray(built.items[...])
    mean = np.eye(N_ITEMS + 1) + matrix + matrix @ matrix + matrix @ matrix @ matrix
    np.testing.assert_allclose(item_vectors(built), mean @ table / 4, atol=1e-6)
    longer = np.pad(table, ((0, 2), (0, 0)), constant_values=0.5)
    np.testing.assert_array_equal(built.backbone.items(jnp.asarray(longer))[-2:], 0.5)


def test_both_forms_have_one_gradient(monkeypatch):
    weights = np.random.default_rng(1).normal(size=(N_ITEMS + 1, D)).astype(np.float32)

    def gradient(dense: int):
        monkeypatch.setattr(dhcn, "DENSE", dense)
        backbone, table = model().backbone, model().items[...]
        of = jax.grad(lambda table: jnp.sum(backbone.items(table) * weights))
        return jax.jit(jax.vmap(of))(jnp.stack([table, 2 * table]))

    np.testing.assert_allclose(gradient(0), gradient(10**6), atol=1e-6)


@pytest.mark.usefixtures("_either_form")
def test_room_for_more_sessions_changes_nothing():
    like = random_sessions(4, N + 30)
    np.testing.assert_allclose(item_vectors(model(like)), item_vectors(model()), atol=1e-6)


def test_hypergraph_of_the_original(monkeypatch):
    monkeypatch.setattr(dhcn, "DENSE", 0)
    path = golden.FOLDER / "dhcn_plain.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent; set DMSREC_GOLDEN_DIR")
    with np.load(path, allow_pickle=False) as file:
        sessions, theirs, n = file["graph_sessions"], file["hyper_adjacency"], int(file["n_items"])
    graph = build_members(golden.unpadded(sessions), n)
    program, params = new_model(ModelSettings("dhcn", n, D, "dot", 9), graph, jax.random.key(0))
    backbone = nnx.merge(program.graphdef, params, program.constants).backbone
    np.testing.assert_allclose(backbone.convolve(jnp.eye(n + 1))[1:, 1:], theirs, atol=1e-6)


def test_neighbourhood_is_the_line_graphs():
    h, x = held(), np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
    shared = h @ h.T
    weights = shared / (h.sum(1)[:, None] + h.sum(1) - shared)
    np.testing.assert_allclose(np.diag(weights), 1.0)
    weights /= weights.sum(1, keepdims=True)
    expected = (x + weights @ x + weights @ weights @ x + weights @ weights @ weights @ x) / 4
    empty = np.zeros((2, N_ITEMS + 1))
    found = jax.jit(neighbourhood)(jnp.pad(x, ((0, 2), (0, 0))), jnp.asarray(np.concatenate([h, empty]), jnp.float32))
    np.testing.assert_allclose(found[:N], expected, atol=1e-5)
    assert not found[N:].any()


def loss(built, data, hyper: Hyper, key=None):
    graphdef, params, rest = nnx.split(built, nnx.Param, ...)
    terms = lambda p: nnx.merge(graphdef, p, rest).loss(data, hyper, key)  # noqa: E731
    (own, recommendation), gradients = jax.jit(jax.value_and_grad(lambda p: terms(p)[::-1], has_aux=True))(params)
    return float(recommendation), float(own), gradients


def test_self_supervision_is_in_the_training_loss_alone():
    built, key = model(), jax.random.key(0)
    data = batch(np.append(np.arange(8), [N] * 4))
    assert loss(built, data, HYPER)[1] == 0
    assert loss(built, data, HYPER._replace(self_supervision=None), key)[1] == 0
    plain, own, gradients = loss(built, data, HYPER, key)
    assert plain == pytest.approx(loss(built, data, HYPER)[0])
    # Scores start near 0, so that each of 8 sessions has 2 ln 2 at first, and an empty place nothing.
    assert own == pytest.approx(0.1 * 8 * 2 * np.log(2), rel=0.2)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients))
    assert jnp.abs(gradients["items"][...]).max() > 0


def test_devices_take_the_step_of_one():
    """Two with half the sessions each compare, and corrupt, the whole batch, empty places left out."""
    graphdef, params, constants = nnx.split(model(), nnx.Param, ...)
    host = build_graphs(SESSIONS, np.ones(N, np.int32))
    graphs = jax.tree.map(jnp.asarray, host)
    order = np.append(np.arange(N), [N] * 6)[None]
    state = initial_state(params, HYPER._replace(self_supervision=5.0), jax.random.key(0))
    static = {"graphdef": graphdef, "budget": batch_budget(host, order.size, 1)}

    def trained(steps, order):
        return jax.jit(steps)(constants, state, graphs, jnp.asarray(order), jnp.asarray(0))

    one, loss = trained(partial(train_steps, **static), order)
    devices = partial(train_steps, **static, axis="data")
    devices = jax.vmap(devices, in_axes=(None, None, None, 0, None), axis_name="data")
    two, losses = trained(devices, order.reshape(1, -1, 2).transpose(2, 0, 1))
    np.testing.assert_allclose(losses, [loss, loss], rtol=1e-5)
    momenta = zip(jax.tree.leaves(one.opt_state.mu), jax.tree.leaves(two.opt_state.mu), strict=True)
    for ours, theirs in momenta:  # a tenth of the gradients
        np.testing.assert_allclose(theirs, [ours, ours], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("n_real", [1, 5, 12])
def test_empty_places_stand_for_no_other_session(n_real):
    real = np.zeros(12, bool)
    real[np.random.default_rng(0).choice(12, n_real, replace=False)] = True
    drawn = {tuple(np.asarray(others(jnp.asarray(real), jax.random.key(i)))) for i in range(20)}
    for places in drawn:
        np.testing.assert_array_equal(np.sort(np.array(places)[real]), np.flatnonzero(real))
        np.testing.assert_array_equal(np.array(places)[~real], np.flatnonzero(~real))
    assert len(drawn) > 1 or n_real == 1


def test_without_sessions_it_is_nothing():
    _, own, gradients = loss(model(), batch([N] * N), HYPER, jax.random.key(0))
    assert own == 0
    assert all(bool((g == 0).all()) for g in jax.tree.leaves(gradients))
