"""Orders, dropout, biases without L2, and the commands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dmsrec_jax.backbones.msgifsr import SCALE
from dmsrec_jax.import_torch import locate, torch_keys, torch_layout
from dmsrec_jax.import_torch import main as import_main
from dmsrec_jax.layers import Unpenalised
from dmsrec_jax.model import Hyper, ModelSettings
from dmsrec_jax.runs import load_run, new_model
from dmsrec_jax.steps import apply_adam, initial_state
from dmsrec_jax.train import main
from tests.backbones.small import batch, build, scores
from tests.conftest import N_ITEMS, SMALL

ORDERS = pytest.mark.parametrize("order", [1, 3])


def new(order: int):
    settings = ModelSettings("msgifsr", N_ITEMS, 6, "cosine", 9, order=order)
    return new_model(settings, None, jax.random.key(2))


def model(order: int):
    return build("msgifsr", score="cosine", order=order)


@nnx.jit
def read(built, data):
    """Session vectors, and scores of all rows, padding's too."""
    vectors = built.item_vectors()
    sessions = built.represent(vectors, data)
    return sessions, built.score(sessions, vectors)


@ORDERS
def test_one_vector_per_order(order):
    built, data = model(order), batch()
    sessions, found = read(built, data)
    assert sessions.z.shape == (12 * order, 6)
    if order == 1:
        assert jnp.abs(found).max() <= SCALE + 1e-4
    else:
        np.testing.assert_array_equal(sessions.reading.session, np.repeat(np.arange(12), order))
        np.testing.assert_allclose(jnp.exp(found).sum(axis=1), 1.0, atol=1e-5)


@ORDERS
def test_only_the_direction_of_item_vectors_counts_for_one_order(order):
    """Longer units are formed from the vectors as they are, by a GRU."""
    built, data = model(order), batch()
    before = scores(built, data)[:, 1:]
    built.items[...] = 3.0 * built.items[...]
    change = float(jnp.abs(scores(built, data)[:, 1:] - before).max())
    assert change < 1e-4 if order == 1 else change > 1e-3


@ORDERS
def test_dropout_needs_a_key_and_follows_it(order):
    built, data = model(order), batch()
    hyper = Hyper(1e-3, 0.1, 3, 3, 0.0, feature_dropout=0.5)
    np.testing.assert_array_equal(scores(built, data, hyper), scores(built, data))
    one, again, other = (scores(built, data, hyper, jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert jnp.abs(one[:, 1:] - other[:, 1:]).max() > 1e-3


def test_l2_leaves_biases_alone():
    _, params = new(3)
    state = initial_state(params, Hyper(1e-2, 0.1, 3, 3, 0.1), jax.random.key(0))
    after, _ = jax.jit(apply_adam)(state, jax.tree.map(jnp.zeros_like, params), jnp.float32(1e-2))
    for (path, before), (_, value) in zip(nnx.to_flat_state(params), nnx.to_flat_state(after), strict=True):
        is_bias = path[-1] == "bias"
        assert isinstance(value, Unpenalised) == is_bias
        moved = (np.asarray(before) != np.asarray(value)) | (np.asarray(before) == 0)
        assert moved.all() != is_bias, path


def test_trains_with_several_orders_and_intents(tiny, tiny_intents, tmp_path):
    flags = ("--backbone", "msgifsr", "--dataset", tiny.path, "--intents", tiny_intents, "--order", 2, *SMALL)
    main([str(word) for word in (*flags, "--out", tmp_path / "run")])
    run = load_run(tmp_path / "run")
    assert (run.settings.order, run.settings.score) == (2, "cosine")
    np.testing.assert_array_equal(run.score_test(), np.load(tmp_path / "run" / "ranks.npy"))


def test_weights_of_three_orders_are_imported(tiny, tmp_path):
    _, params = new(3)
    pure = nnx.to_pure_dict(params)
    weights = {}
    for key, path in torch_keys("msgifsr", params).items():
        holder, name = locate(pure, path)
        weights[key] = np.asarray(torch_layout(holder[name], path))
    np.savez(tmp_path / "weights.npz", **weights)
    words = ("--backbone", "msgifsr", "--weights", tmp_path / "weights.npz", "--dataset", tiny.path)
    import_main([str(word) for word in (*words, "--out", tmp_path / "run")])
    run = load_run(tmp_path / "run")
    assert run.settings.order == 3
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(run.params), pure)


def test_flags_that_do_not_fit_are_named(tiny, tiny_intents, tmp_path, refused):
    flags = ("--dataset", tiny.path, "--out", tmp_path / "run", *SMALL)
    assert "--score dot: the scores of msgifsr are cosines" in refused(
        main, "--backbone", "msgifsr", *flags, "--score", "dot"
    )
    assert "--order 2: needs --backbone msgifsr" in refused(main, "--backbone", "srgnn", *flags, "--order", 2)
    released = ("--intents", tiny_intents, "--semantics", "released", "--order", 3)
    assert "no fused msgifsr of --order 2 or 3" in refused(main, "--backbone", "msgifsr", *flags, *released)
    assert not (tmp_path / "run").exists()
