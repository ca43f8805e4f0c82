"""Blocks of items and padding as released."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmsrec_jax.backbones import tagnn
from dmsrec_jax.backbones.blocks import Cut
from tests.backbones.small import LENGTH, SESSIONS, batch, build, read, scores
from tests.conftest import N_ITEMS

model = partial(build, "tagnn")


@pytest.mark.parametrize("released_padding", [None, 20])
@pytest.mark.parametrize("scale", [None, 12.0])
def test_any_cut_gives_the_same(scale, released_padding):
    built, data = model(released_padding=released_padding), batch()
    reading = read(built, data)

    def scores(cut: Cut):
        def loss(vectors):
            found = built.backbone.score(reading.z, reading, vectors, scale, cut)
            return jnp.sum(found**2), found

        return jax.jit(jax.grad(loss, has_aux=True))(built.item_vectors())

    whole = scores(Cut(N_ITEMS + 1, loop=False))
    for cut in (Cut(7, loop=False), Cut(7, loop=True), Cut(1, loop=True), Cut(100, loop=True)):
        for one, other in zip(whole, scores(cut), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_in_a_loop_blocks_are_computed_again():
    """Memory for the gradient grows with a block, not with rows x items."""
    n_rows, n_items = 64, 4096
    rows = tagnn.Rows(*jnp.ones((2, n_rows, 4)), jnp.zeros((n_rows, 1)), jnp.arange(n_rows) // 32)

    def temporary(*, loop: bool) -> int:
        def loss(keys, items):
            return (tagnn.attended(rows._replace(keys=keys), items, 2, Cut(256, loop)) ** 2).sum()

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(rows.keys, jnp.ones((n_items, 4))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(loop=True) < 4 * n_rows * n_items < temporary(loop=False)


@pytest.mark.parametrize("score", ["dot", "cosine"])
def test_scores_are_those_of_a_session_vector_per_item(score):
    """Click by click, one softmax per session and item."""
    built, data = model(score=score), batch()
    vectors = built.item_vectors()
    reading = read(built, data)
    h, z = np.asarray(reading.memory.h[data.click_node]), np.asarray(reading.z)
    if score == "cosine":
        h, z = (6 * x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (h, z))
    found, items = scores(built, data), np.asarray(vectors[1:])
    for row in range(12):
        own = h[np.asarray(data.click_session) == row]
        weights = np.exp(np.asarray(built.backbone.w_target(own)) @ items.T)
        by_item = z[row] + (weights / weights.sum(0)).T @ own
        np.testing.assert_allclose(found[row, 1:], (by_item * items).sum(1), atol=1e-5)


def test_released_padding_counts_only_where_there_is_some():
    plain, as_long, longer = (scores(model(released_padding=n), batch()) for n in (None, LENGTH, LENGTH + 9))
    longest = SESSIONS.lengths == LENGTH
    assert 0 < longest.sum() < 12
    np.testing.assert_allclose(as_long[longest], plain[longest], atol=1e-6)
    assert (jnp.abs(as_long - plain)[~longest, 1:].max(1) > 1e-4).all()
    assert (jnp.abs(longer - as_long)[:, 1:].max(1) > 1e-4).all()
