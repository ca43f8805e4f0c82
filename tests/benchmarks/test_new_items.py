"""A data set without some of its items."""

import numpy as np
import pytest

from benchmarks.new_items import held_out, percent, without
from dmsrec_jax.data import SessionDataset


def test_no_click_on_a_held_out_item_is_left(tiny: SessionDataset):
    new = held_out(tiny, 0.3, 0)
    assert 0 < new.sum() < tiny.n_items
    assert not new[0]
    assert all(tiny.titles[item] for item in np.flatnonzero(new))
    known = without(tiny, new)
    assert known.item_ids == [tiny.item_ids[item] for item in np.flatnonzero(~new)[1:]]
    for split in (known.train, known.test):
        assert (split.items > 0).all()
        assert (split.targets > 0).all()
        assert max(split.items.max(), split.targets.max()) <= len(known.item_ids)
    left = [[tiny.item_ids[i] for i in session if not new[i]] for session in map(tiny.sessions.__getitem__, range(45))]
    found = [[known.item_ids[i - 1] for i in known.sessions[row]] for row in range(len(known.sessions))]
    assert found == [session for session in left if len(session) > 1]


def test_percent_counts_places():
    assert percent(np.array([2, 40, 21])) == pytest.approx({"hr@20": 100 / 3, "mrr@20": 100 / 6})
