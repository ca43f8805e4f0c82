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


def test_whole_sessions_of_held_rows_are_left_out(tiny):
    held = np.flatnonzero(chain_folds(tiny.train, 3, seed=0) == 1)
    out = set(tiny.train.chains[held].tolist())
    left = [tiny.sessions[i].tolist() for i in range(len(tiny.sessions)) if i not in out]
    sessions = hold_out(tiny, held)
    assert 0 < len(left) < len(tiny.sessions)
    assert [sessions[i].tolist() for i in range(len(sessions))] == left


@pytest.mark.parametrize("folds", [1, 46])
def test_too_few_and_too_many_folds(tiny, folds):
    with pytest.raises(InputError, match=f"--cross-fit {folds}"):
        chain_folds(tiny.train, folds, seed=0)
