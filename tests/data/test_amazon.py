"""Amazon reviews on a miniature: JSON and Python literals, order, split, titles."""

import gzip
import json

import pytest

from dmsrec_jax.data.amazon import read_amazon
from dmsrec_jax.data.config import PrepareAmazon
from dmsrec_jax.errors import InputError

REVIEWS = [  # user, asin, time; u2 reviews two products on one day: they stay in file order
    ("u2", "B3", 5), ("u2", "B1", 5), ("u2", "B2", 1),
    ("u1", "B2", 9), ("u1", "B1", 3), ("u3", "B4", 1), ("u3", "B1", 2),
]  # fmt: skip
META = [{"asin": "B1", "title": "Soap &amp; Water"}, {"asin": "B2"}, {"asin": "B9", "title": "Other"}]


def write(folder, *, literal=False, extra=""):
    folder.mkdir()
    show = repr if literal else json.dumps
    reviews = [show({"reviewerID": u, "asin": a, "unixReviewTime": t, "helpful": [0, 0]}) for u, a, t in REVIEWS]
    with gzip.open(folder / "reviews_X_5.json.gz", "wt") as file:
        file.write("\n".join([reviews[0], *([extra] if extra else []), *reviews[1:]]) + "\n")
    with gzip.open(folder / "meta_X.json.gz", "wt") as file:
        file.write("".join(show(product) + "\n" for product in META))
    return folder


@pytest.mark.parametrize("literal", [False, True])
def test_by_hand(tmp_path, literal):
    raw = write(tmp_path / "raw", literal=literal)
    prepared = read_amazon(PrepareAmazon(out=tmp_path, raw=raw, test_fraction=0.34))
    assert prepared.item_ids == ["B1", "B2", "B3", "B4"]
    assert prepared.titles == ["Soap & Water", "", "", ""]
    assert [prepared.sessions[i].tolist() for i in range(1)] == [[1, 2]]
    prepared = read_amazon(PrepareAmazon(out=tmp_path, raw=raw))
    assert [prepared.sessions[i].tolist() for i in range(2)] == [[1, 2], [2, 3, 1]]
    assert [prepared.train[i].tolist() for i in range(3)] == [[1], [2], [2, 3]]
    assert prepared.train.targets.tolist() == [2, 3, 1]
    assert prepared.test[0].tolist() == [4]
    assert prepared.test.targets.tolist() == [1]


SURROGATE = json.dumps({"reviewerID": "u1", "asin": "B\ud800", "unixReviewTime": 1})


@pytest.mark.parametrize(
    "line", ["{", "[1, 2]", "{'asin': __import__('os')}", "(" * 500, '{"asin": "B1"}', "{'a': 1} x", SURROGATE]
)
def test_bad_lines_are_named_or_counted(tmp_path, line):
    raw = write(tmp_path / "raw", extra=line)
    with pytest.raises(InputError, match=r"reviews_X_5\.json\.gz: line 2: "):
        read_amazon(PrepareAmazon(out=tmp_path, raw=raw))
    prepared = read_amazon(PrepareAmazon(out=tmp_path, raw=raw, skip_bad_rows=True))
    assert "bad rows skipped: 1, the first in line 2" in prepared.notes[0]
    assert len(prepared.train) == 3


def test_a_title_with_half_a_surrogate_pair_is_a_bad_line(tmp_path, monkeypatch):
    monkeypatch.setitem(META[1], "title", "\ud800")
    raw = write(tmp_path / "raw")
    with pytest.raises(InputError, match=r"meta_X\.json\.gz: line 2: "):
        read_amazon(PrepareAmazon(out=tmp_path, raw=raw))
    prepared = read_amazon(PrepareAmazon(out=tmp_path, raw=raw, skip_bad_rows=True))
    assert prepared.titles == ["Soap & Water", "", "", ""]
