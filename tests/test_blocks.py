"""Items in blocks, few in a list or many in one array."""

import jax.numpy as jnp
import numpy as np
import pytest

from dmsrec_jax import blocks

ITEMS = np.arange(22.0, dtype=np.float32).reshape(11, 2)


@pytest.mark.parametrize("few", [0, 32])
@pytest.mark.parametrize("size", [1, 4, 11, 20])
def test_scores_pass_through_their_blocks(monkeypatch, few, size):
    """A product per block, and a sum over all of them."""
    monkeypatch.setattr(blocks, "FEW", few)
    rows = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    scores = rows @ ITEMS.T

    def one(total, block, columns):
        return total + columns.sum(), (rows @ block.T, columns * 2)

    cut = blocks.cut_blocks(ITEMS, size), blocks.cut_columns(scores, size)
    assert isinstance(cut[0], list) == (few > 0)
    total, (products, doubled) = blocks.over_blocks(one, jnp.zeros(()), *cut)
    np.testing.assert_array_equal(blocks.join_blocks(products, 11), scores)
    np.testing.assert_array_equal(blocks.join_blocks(doubled, 11), 2 * scores)
    assert total == scores.sum()


def test_few_rows_take_many_items_at_once():
    assert blocks.items_at_once(1) > 1000 * blocks.items_at_once(10**5)
    assert all(blocks.items_at_once(rows) % blocks.ALIGNED == 0 for rows in (1, 999, 10**9))
    assert blocks.items_at_once(10**9) > 0
