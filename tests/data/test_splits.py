import numpy as np
import pytest

from dmsrec_jax.data.splits import chain_folds, hold_out
from dmsrec_jax.errors import InputError


def test_folds_keep_chains_together_and_alike_in_size(tiny):
    fold = chain_folds(tiny.train, 4, seed=0)
    by_chain = {chain: set(fold[tiny.train.chains == chain].tolist()) for chain in set(tiny.train.chains.tolist())}
    assert all(len(folds) == 1 for folds in by_chain.values())
    sizes = np.bincount([folds.pop() for folds in by_chain.values()])
    assert len(sizes) == 4
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(fold, chain_folds(tiny.train, 4, seed=0))
    assert (fold != chain_folds(tiny.train, 4, seed=1)).any()


def test_what_is_held_out_and_what_is_left_are_the_whole(tiny):
    held = chain_folds(tiny.train, 3, seed=0) == 1
    left, out, sessions = hold_out(tiny, held)
    for part, rows in ((left, np.flatnonzero(~held)), (out, np.flatnonzero(held))):
        assert len(part) == len(rows)
        for i, row in enumerate(rows):
            np.testing.assert_array_equal(part[i], tiny.train[row])
            assert (part.targets[i], part.chains[i]) == (tiny.train.targets[row], tiny.train.chains[row])
    assert len(sessions) == len(tiny.sessions) - len(set(out.chains.tolist()))


@pytest.mark.parametrize("folds", [1, 46])
def test_too_few_and_too_many_folds(tiny, folds):
    with pytest.raises(InputError, match=f"--cross-fit {folds}"):
        chain_folds(tiny.train, folds, seed=0)
