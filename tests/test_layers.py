"""Unit vectors, dropout and initial values."""

import jax
import jax.numpy as jnp
import numpy as np

from dmsrec_jax.layers import click_softmax, dropout, uniform, unit


def test_unit_vectors_have_length_one_and_finite_gradients_at_zero():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0], [1e-3, 0.0]])
    np.testing.assert_allclose(unit(x), [[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]], atol=1e-5)
    assert jnp.isfinite(jax.grad(lambda x: unit(x).sum())(x)).all()


def test_dropout_keeps_the_mean_and_takes_a_traced_rate():
    x = jnp.ones((400, 100))
    dropped = jax.jit(dropout)(x, jnp.float32(0.25), jax.random.key(0))
    values = np.unique(np.asarray(dropped))
    np.testing.assert_allclose(values, [0.0, 1 / 0.75], rtol=1e-6)
    assert abs(float((dropped == 0).mean()) - 0.25) < 0.01


def test_dropout_without_rate_or_key_is_the_identity():
    x = jnp.arange(6.0)
    assert dropout(x, None, jax.random.key(0)) is x
    assert dropout(x, 0.5, None) is x


def test_initial_values_fill_their_range():
    values = uniform(25)(jax.random.key(1), (1000,))
    assert -0.2 <= values.min() < -0.19
    assert 0.19 < values.max() <= 0.2


def test_softmax_over_clicks_is_one_over_rows_repeated():
    logits, clicks = jnp.array([0.3, -1.0, 2.0, 0.5, 7.0]), jnp.array([1.0, 3.0, 0.0, 2.0, 0.0])
    owner = jnp.array([0, 0, 0, 1, 2])  # 2: padding
    found = click_softmax(logits, clicks, owner, 2)
    by_click = jax.nn.softmax(jnp.array([0.3, -1.0, -1.0, -1.0]))
    np.testing.assert_allclose(found[:4], [by_click[0], by_click[1:].sum(), 0.0, 1.0], atol=1e-6)
    gradients = jax.grad(lambda x: jnp.sum(click_softmax(x, clicks, owner, 2)[:2] ** 2))(logits)
    assert jnp.isfinite(gradients).all()
