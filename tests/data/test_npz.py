"""The `npz` source: the four real forms, titles, and chains that are known to be right."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from dmsrec_jax.data.config import PrepareNpz
from dmsrec_jax.data.dataset import Sessions
from dmsrec_jax.data.npz import read_npz
from dmsrec_jax.data.samples import last_clicks, longest, longest_first, shortest_first
from dmsrec_jax.errors import InputError

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
    prepared = read_npz(PrepareNpz(raw=raw, out=raw / "out"))
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
    prepared = read_npz(PrepareNpz(raw=raw, out=raw / "out"))
    assert prepared.titles == ["A & B", "C's", "", "", "E"]
    assert prepared.item_ids == ["B00", "2", "7", "4", "5"]


@pytest.mark.parametrize(
    ("titles", "complaint"),
    [
        ({"1": {"asin": "B0"}, "2": "A", "4": {"asin": "B0"}}, "items 1 and 4 have one raw id, 'B0'"),
        ({"1": {"movie_id": 3}, "4": "A"}, "items 1 and 3 have one raw id, '3'"),
        ({"1": "A", "01": "B", "4": "C"}, "key '01': an earlier key is item 1, too"),
        ({"1": "A", "4": {"title": "B", "asin": None}}, "item 4: an asin or movie_id"),
        ({"1": "A", "4": {"movie_id": 1.5}}, "item 4: an asin or movie_id"),
        ({"1": "A", "4": {"asin": "B\ud800"}}, "item 4: an asin or movie_id"),
        ({"1": "A", "4": {"title": "B\ud800"}}, "item 4: a title"),
        ({"1": "A", "4": "B\ud800"}, "item 4: a title"),
    ],
)
def test_titles_that_are_none_and_ids_that_are_one(raw, titles, complaint):
    (raw / "titles.json").write_text(json.dumps(titles))
    with pytest.raises(InputError, match=rf"titles\.json: {complaint}"):
        read_npz(PrepareNpz(raw=raw, out=raw / "out"))


def test_without_titles_ids_are_numbers(raw):
    prepared = read_npz(PrepareNpz(raw=raw / "sessions.npz", out=raw / "out"))
    assert prepared.titles is None
    assert prepared.item_ids == ["1", "2", "3", "4"]


def write_rows(path: Path, rows, whole: Sessions) -> Path:
    """The same rows train and test."""
    split = rows(whole)
    arrays = {"all_items": whole.items, "all_offsets": whole.offsets}
    for part in ("train", "test"):
        arrays |= {f"{part}_items": split.items, f"{part}_offsets": split.offsets, f"{part}_targets": split.targets}
    np.savez(path / "sessions.npz", **arrays)
    return path


WHOLE = Sessions(np.array([1, 2, 3, 4, 3, 1, 4], np.int32), np.array([0, 3, 5, 7]))


def test_prefixes_of_rows_that_are_last_clicks(tmp_path):
    raw = write_rows(tmp_path, last_clicks, WHOLE)
    prepared = read_npz(PrepareNpz(raw=raw, out=raw / "out", augment_prefixes=True))
    assert [row.tolist() for row in prepared.train] == [[1], [1, 2], [4], [1]]
    assert prepared.train.targets.tolist() == [2, 3, 3, 4]
    assert prepared.train.chains.tolist() == [0, 0, 1, 2]
    assert [row.tolist() for row in prepared.test] == [[1, 2], [4], [1]], "test rows stay"


@pytest.mark.parametrize("order", [shortest_first, longest_first])
def test_without_the_last_target_of_test_sessions(tmp_path, order):
    raw = write_rows(tmp_path, order, WHOLE)
    prepared = read_npz(PrepareNpz(raw=raw, out=raw / "out", drop_last_target=True))
    assert [row.tolist() for row in prepared.test] == [[1]]
    assert prepared.test.targets.tolist() == [2]
    assert prepared.test.chains.tolist() == [0]
    assert len(prepared.train) == 4, "training rows stay"
    assert "test rows: 1 of 4, without each session's last target" in prepared.notes


def test_no_test_row_left(raw):
    with pytest.raises(InputError, match="--drop-last-target leaves no test row"):
        read_npz(PrepareNpz(raw=raw, out=raw / "out", drop_last_target=True))


def test_the_published_rows_of_msgifsr_on_beauty():
    raw = SHARED / "beauty"
    if not raw.exists():
        pytest.skip(f"{raw} is not there (it may not be redistributed)")
    assert len(read_npz(PrepareNpz(raw=raw, out=raw, drop_last_target=True)).test) == 15_185
