"""A data set without some of its items."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.new_items import held_out, main, percent, without
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.data.samples import last_clicks, longest


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


@pytest.mark.parametrize("part", ["train", "test"])
def test_each_part_keeps_its_form(tiny: SessionDataset, part):
    single = replace(tiny, **{part: last_clicks(longest(getattr(tiny, part)))})
    known = without(single, held_out(tiny, 0.3, 0))
    for name in ("train", "test"):
        chains = getattr(known, name).chains
        assert (len(np.unique(chains)) == len(chains)) == (name == part)


def test_what_cannot_be_measured_is_refused_first(broken: SessionDataset, tmp_path, refused):
    base = tmp_path / "base.yaml"
    base.touch()
    flags = ("--dataset", broken.path, "--out", tmp_path / "out", "--base")
    assert "--base nowhere.yaml: no such file" in refused(main, *flags, "nowhere.yaml")
    assert "--fraction 1e-09: draws none of the 30 items" in refused(main, *flags, base, "--fraction", 1e-9)
    meta = broken.meta | {"provenance": {"keep_last": 3}}
    (broken.path / "meta.json").write_text(json.dumps(meta))
    assert f"{broken.path}: made with --keep-last" in refused(main, *flags, base)
    assert not (tmp_path / "out").exists()


def test_percent_counts_places():
    assert percent(np.array([2, 40, 21])) == pytest.approx({"hr@20": 100 / 3, "mrr@20": 100 / 6})
