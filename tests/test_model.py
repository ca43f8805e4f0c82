"""Properties of every backbone behind the same scorer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dmsrec_jax.backbones import BACKBONES, reads
from dmsrec_jax.data import Sessions
from dmsrec_jax.graphs import SessionGraphs, build_graphs, pack
from dmsrec_jax.item_graph import read_sessions
from dmsrec_jax.model import COSINE_SCALE, Hyper, ModelSettings, cross_entropy
from dmsrec_jax.orders import batch_budget
from dmsrec_jax.runs import new_model
from tests.backbones.small import scores

N_ITEMS, D = 7, 6
# The first session repeats items and goes back and forth; the last but one has one click.
CLICKS = [[1, 2, 1, 1, 5], [3, 4, 6], [2], [7, 6, 5, 4, 3, 2]]
TARGETS = [3, 1, 2, 7]
HYPER = Hyper(1e-3, 0.1, 3, 3, 1e-5, dropout_global=0.5, dropout_local=0.3, dropout_layers=0.3)


def sessions() -> Sessions:
    lengths = [len(row) for row in CLICKS]
    return Sessions(np.concatenate(CLICKS).astype(np.int32), np.append(0, np.cumsum(lengths)))


OWN_COSINES = [name for name, backbone in BACKBONES.items() if hasattr(backbone, "SCALE")]
"""Their scores are cosines, whatever --score."""
BY_DOT = [(name, "dot", 1) for name in BACKBONES if name not in OWN_COSINES]
FORMS = BY_DOT + [(name, "cosine", 1) for name in BACKBONES] + [("msgifsr", "cosine", 2)]
"""Backbone, score, order."""
TRAINED = BY_DOT + [(name, "cosine", 1) for name in ("srgnn", *OWN_COSINES)] + [("msgifsr", "cosine", 2)]
"""Of backbones with both scores, SR-GNN stands for the gradient of cosines."""


def model(backbone: str, score: str = "dot", order: int = 1):
    graph = read_sessions(reads(backbone), sessions(), N_ITEMS, 3)
    settings = ModelSettings(backbone, N_ITEMS, D, score, n_positions=6, n_neighbors=3, order=order)
    program, params = new_model(settings, graph, jax.random.key(2))
    return nnx.merge(program.graphdef, params, program.constants)


GRAPHS = build_graphs(sessions(), np.array(TARGETS, np.int32))


def batch(rows: list[int], graphs: SessionGraphs = GRAPHS, **wider: int):
    budget = batch_budget(GRAPHS, 4, 1)
    budget = budget._replace(**{name: getattr(budget, name) + more for name, more in wider.items()})
    return pack(jax.tree.map(jnp.asarray, graphs), jnp.array(rows), budget)


@nnx.jit
def loss_and_gradients(built, data):
    """Mean loss over the batch's sessions, 0 without any."""

    def loss(built):
        return cross_entropy(built(data), data) / jnp.maximum(jnp.sum(data.length > 0), 1.0)

    return nnx.value_and_grad(loss)(built)


def form_id(form: tuple) -> str:
    return "-".join(map(str, form))


@pytest.fixture(scope="module", params=FORMS, ids=form_id)
def built(request):
    return model(*request.param)


def test_a_session_scores_the_same_in_any_company(built):
    together = scores(built, batch([0, 1, 2, 3]))
    for row in range(4):
        alone = scores(built, batch([4, row, 4, 4], nodes=32, edges=16, clicks=48))
        np.testing.assert_allclose(alone[1], together[row], atol=1e-5)


def test_scores_have_one_column_per_item_and_none_for_padding(built):
    logits = scores(built, batch([0, 1, 2, 3]))
    assert logits.shape == (4, N_ITEMS + 1)
    assert (logits[:, 0] == -jnp.inf).all()
    assert jnp.isfinite(logits[:, 1:]).all()


@pytest.mark.parametrize("built", TRAINED, indirect=True, ids=form_id)
def test_padding_and_empty_places_change_neither_loss_nor_gradients(built):
    value, gradients = loss_and_gradients(built, batch([0, 1, 2, 4]))
    wide_value, wide_gradients = loss_and_gradients(built, batch([4, 2, 0, 1], nodes=64, edges=80, clicks=96))
    assert value == pytest.approx(float(wide_value), abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients, wide_gradients)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("built", TRAINED, indirect=True, ids=form_id)
def test_gradients_are_finite_in_a_batch_without_sessions(built):
    _, gradients = loss_and_gradients(built, batch([4, 4, 4, 4]))
    assert all(bool((g == 0).all()) for g in jax.tree.leaves(gradients))


def test_order_of_clicks_matters(built):
    backwards = Sessions(np.array(CLICKS[3][::-1], np.int32), np.array([0, 6]))
    reverse = scores(built, batch([0, 1, 1, 1], build_graphs(backwards)))
    assert jnp.abs(reverse[0, 1:] - scores(built, batch([3, 4, 4, 4]))[0, 1:]).max() > 1e-4


@pytest.mark.parametrize("backbone", BACKBONES)
def test_cosine_scores_are_bounded(backbone):
    logits = scores(model(backbone, "cosine"), batch([0, 1, 2, 3]))
    assert jnp.abs(logits[:, 1:]).max() <= getattr(BACKBONES[backbone], "SCALE", COSINE_SCALE) + 1e-4


@pytest.mark.parametrize("backbone", ["gcegnn", "share", "attenmixer", "miasrec"])
def test_dropout_needs_a_key_and_follows_it(backbone):
    built, hyper = model(backbone), HYPER._replace(feature_dropout=0.3)
    data = batch([0, 1, 2, 3])
    still = scores(built, data)
    np.testing.assert_array_equal(scores(built, data, hyper), still)
    one, again, other = (scores(built, data, hyper, jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert jnp.abs(one[:, 1:] - other[:, 1:]).max() > 1e-5


def test_cross_entropy_by_hand():
    data = batch([1, 4, 4, 4])  # target 1
    logits = jnp.full((4, 4), jnp.log(2.0)).at[:, 0].set(-jnp.inf).at[:, 1].set(jnp.log(6.0))
    assert float(cross_entropy(logits, data)) == pytest.approx(np.log(10 / 6))


def test_gcegnn_starts_with_its_items_not_their_opposite():
    assert (model("gcegnn").backbone.w_2[...] >= 0).all()
