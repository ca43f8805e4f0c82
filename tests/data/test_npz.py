"""The `npz` source: the four real forms, titles, and chains that are known to be right."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from dmsrec_jax.data.dataset import Sessions
from dmsrec_jax.data.npz import read_npz
from dmsrec_jax.data.samples import longest, shortest_first

SHARED = Path(os.environ.get("DMSREC_SHARED", Path(__file__).parents[2] / "../shared")) / "data"

REAL = {  # form, training rows, whole sessions, test rows, test chains, items, clicks
    "ml-1m": ("one row per session", 65_664, 69_906, 5_979, 5_979, 3_416, 991_846),
    "beauty": ("all prefixes, shortest first", 158_717, 20_126, 17_422, 2_237, 12_101, 198_502),
    "diginetica": ("all prefixes, longest first", 719_470, 186_670, 60_858, 15_963, 43_097, 982_961),
    "tmall": ("all prefixes, longest first", 351_268, 65_286, 25_898, 1_027, 40_727, 443_479),
    "diginetica-sample": ("all prefixes, longest first", 1_205, 469, 99, 39, 309, 1_812),
}


@pytest.mark.parametrize("name", REAL)
def test_real_forms(name):
    raw = SHARED / name
    if not raw.exists():
        pytest.skip(f"{raw} is not there (it may not be redistributed)")
    prepared = read_npz(raw)
    form, train_rows, n_sessions, test_rows, test_chains, n_items, clicks = REAL[name]
    assert prepared.notes == (f"training rows: {form}",)
    assert (len(prepared.train), len(prepared.sessions), len(prepared.test)) == (train_rows, n_sessions, test_rows)
    assert prepared.test.chains[-1] + 1 == test_chains
    assert len(prepared.item_ids) == n_items
    whole_tests = longest(prepared.test)
    assert len(prepared.sessions.items) + len(whole_tests.items) == clicks
    with np.load(raw / "sessions.npz") as npz:  # the rows keep their order: candidates refer to it
        for split, rows in (("train", prepared.train), ("test", prepared.test)):
            assert np.array_equal(npz[f"{split}_items"], rows.items)
            assert np.array_equal(npz[f"{split}_targets"], rows.targets)
    for split, whole in ((prepared.train, prepared.sessions), (prepared.test, whole_tests)):
        starts = whole.offsets[split.chains]
        assert np.array_equal(whole.items[starts + split.lengths], split.targets)
        place = np.arange(len(split.items)) - np.repeat(split.offsets[:-1], split.lengths)
        assert np.array_equal(whole.items[np.repeat(starts, split.lengths) + place], split.items)


@pytest.fixture
def raw(tmp_path):
    whole = Sessions(np.array([1, 2, 3, 4], np.int32), np.array([0, 2, 4]))
    train = test = shortest_first(whole)
    arrays = {"all_items": whole.items, "all_offsets": whole.offsets}
    for split, rows in (("train", train), ("test", test)):
        arrays |= {f"{split}_items": rows.items, f"{split}_offsets": rows.offsets, f"{split}_targets": rows.targets}
    np.savez(tmp_path / "sessions.npz", **arrays)
    return tmp_path


def test_titles_are_unescaped_and_raw_ids_kept(raw):
    titles = {"1": {"title": "A &amp; B", "asin": "B00"}, "2": "C&#39;s", "3": {"movie_id": 7}, "5": {"title": "E"}}
    (raw / "titles.json").write_text(json.dumps(titles))
    prepared = read_npz(raw)
    assert prepared.titles == ["A & B", "C's", "", "", "E"]
    assert prepared.item_ids == ["B00", "2", "7", "4", "5"]


def test_without_titles_ids_are_numbers(raw):
    prepared = read_npz(raw / "sessions.npz")
    assert prepared.titles is None
    assert prepared.item_ids == ["1", "2", "3", "4"]
