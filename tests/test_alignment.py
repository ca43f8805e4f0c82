"""Properties that every alignment has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmsrec_jax.alignment import ALIGNMENTS, kl

B, D = 6, 5


@pytest.fixture(params=ALIGNMENTS)
def align(request):
    return ALIGNMENTS[request.param]


def vectors(seed: int, rows: int = B):
    one, two = jax.random.split(jax.random.key(seed))
    return jax.random.normal(one, (rows, D)), jax.random.normal(two, (rows, D))


def value_and_gradients(align, structural, semantic, counts):
    return jax.value_and_grad(align, argnums=(0, 1))(structural, semantic, jnp.asarray(counts))


def test_rows_that_do_not_count_change_nothing(align):
    structural, semantic = vectors(0)
    due, gradients = value_and_gradients(align, structural, semantic, [True] * B)
    rows = np.array([0, 2, 3, 4, 6, 7])  # scattered among rows that do not count, zeros and huge ones
    for filler in (0.0, 1e4):
        wide = [jnp.full((9, D), filler).at[rows].set(x) for x in (structural, semantic)]
        value, wide_gradients = value_and_gradients(align, *wide, np.isin(np.arange(9), rows))
        assert float(value) == pytest.approx(float(due), abs=1e-5)
        for ours, narrow in zip(wide_gradients, gradients, strict=True):
            np.testing.assert_allclose(ours[rows], narrow, atol=1e-6, rtol=1e-5)
            np.testing.assert_array_equal(np.delete(ours, rows, axis=0), 0)


@pytest.mark.parametrize("counts", [[True] * B, [True] + [False] * (B - 1), [False] * B], ids=["all", "one", "none"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_gradients_are_finite(align, counts, scale):
    structural, semantic = vectors(1)
    for pair in ((scale * structural, semantic), (structural, scale * semantic), (scale * structural,) * 2):
        value, gradients = value_and_gradients(align, *pair, counts)
        assert np.isfinite(value)
        assert all(np.isfinite(gradient).all() for gradient in gradients)
        assert any(counts) or float(value) == 0


def test_a_step_downhill_draws_the_vectors_together(align):
    structural, semantic = vectors(2)
    value, (gradient, _) = value_and_gradients(align, structural, semantic, [True] * B)
    if align is not ALIGNMENTS["none"]:
        assert align(structural - 0.1 * gradient, semantic, jnp.ones(B, bool)) < value


def test_kl_of_equal_vectors_is_zero_and_has_a_direction():
    structural, semantic = vectors(3)
    counts = jnp.ones(B, bool)
    assert float(kl(structural, structural + 7.0, counts)) == pytest.approx(0.0, abs=1e-6)
    assert abs(float(kl(structural, semantic, counts)) - float(kl(semantic, structural, counts))) > 1e-3


def test_in_batch_by_hand():
    eye = jnp.eye(3)
    due = np.log(np.exp(2.0) + 2.0) - 2.0
    assert float(ALIGNMENTS["contrastive"](eye, 5 * eye, jnp.ones(3, bool))) == pytest.approx(due, abs=1e-5)
