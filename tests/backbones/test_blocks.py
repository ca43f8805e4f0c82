"""Items in blocks, few in a list or many in one array."""

import jax.numpy as jnp
import numpy as np
import pytest

from dmsrec_jax.backbones.blocks import ALIGNED, LARGE, Cut, cut_blocks, cut_columns, cut_for, join_blocks, over_blocks

ITEMS = jnp.arange(22.0).reshape(11, 2)


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("size", [1, 4, 11, 20])
def test_scores_pass_through_their_blocks(loop, size):
    """A product per block, and a sum over all of them."""
    cut = Cut(size, loop)
    rows = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    scores = rows @ ITEMS.T

    def one(total, block, columns):
        return total + columns.sum(), (rows @ block.T, columns * 2)

    total, (products, doubled) = over_blocks(one, jnp.zeros(()), cut_blocks(ITEMS, cut), cut_columns(scores, cut))
    np.testing.assert_array_equal(join_blocks(products, 11), scores)
    np.testing.assert_array_equal(join_blocks(doubled, 11), 2 * scores)
    assert total == scores.sum()


@pytest.mark.parametrize("rows", [1, 999, 10**9])
def test_a_machines_cut(rows):
    """More rows, fewer items; without a loop there are never many blocks."""
    size, loop = cut_for(rows, LARGE // rows)
    assert not loop
    assert cut_for(rows, LARGE // rows + 1).loop
    assert size % ALIGNED == 0
    assert (LARGE // rows) / size <= 16
