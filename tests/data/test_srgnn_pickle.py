"""SR-GNN pickles: every protocol reads; whatever could build, call or blow up is refused."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest

from dmsrec_jax.data.splits import validation_split
from dmsrec_jax.data.srgnn_pickle import load, read_pickles
from dmsrec_jax.data.write import write_dataset
from dmsrec_jax.errors import InputError

TRAIN = ([[1, 2], [1], [3]], [3, 2, 4])
TEST = ([[300], [2, 3]], [70_000, 1])


def write(folder, protocol=pickle.DEFAULT_PROTOCOL, **parts):
    parts = {"train": TRAIN, "test": TEST} | parts
    for name, value in parts.items():
        (folder / f"{name}.txt").write_bytes(pickle.dumps(value, protocol=protocol))
    return folder


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(tmp_path, protocol):
    prepared = read_pickles(write(tmp_path, protocol))
    assert [prepared.train[i].tolist() for i in range(3)] == [[1, 2], [1], [3]]
    assert prepared.train.chains.tolist() == [0, 0, 1]
    assert [prepared.sessions[i].tolist() for i in range(2)] == [[1, 2, 3], [3, 4]]
    assert prepared.test.targets.tolist() == [70_000, 1]
    assert len(prepared.item_ids) == 70_000


def test_whole_sessions_are_used_where_given(tmp_path):
    prepared = read_pickles(write(tmp_path, all_train_seq=[[1, 2, 3], [3, 4]]))
    assert prepared.notes == ("training rows: all prefixes, longest first",)
    with pytest.raises(InputError, match="training row 2 is no prefix"):
        read_pickles(write(tmp_path, all_train_seq=[[1, 2, 3], [4, 4]]))


def test_the_last_rows_of_all_prefixes(tmp_path):
    """As the repository cuts yoochoose1_64: the first session has its shortest rows alone, and is whole elsewhere."""
    train = [[1, 2], [1], [3], [5, 6], [5]], [3, 2, 4, 7, 6]
    raw = write(tmp_path, train=train, all_train_seq=[[1, 2, 3, 9], [3, 4], [5, 6, 7]])
    prepared = read_pickles(raw)
    assert prepared.notes == ("training rows: all prefixes, longest first, without the first 1 of the first session",)
    assert prepared.sessions[0].tolist() == [1, 2, 3, 9]
    dataset = write_dataset(prepared, tmp_path / "out", name="mine", provenance={})
    rows, validation, whole = validation_split(dataset, 0.3)
    assert rows.chains.tolist() == [0, 0, 1]
    assert validation.chains.tolist() == [2, 2]
    assert whole.lengths.tolist() == [4, 2]


class Evil:
    def __reduce__(self):
        return print, ("run",)


def shared(depth):
    value = [1] * 10
    for _ in range(depth):
        value = [value] * 10
    return value


HOSTILE = {
    "a call": pickle.dumps(Evil()),
    "a call, protocol 0": pickle.dumps(Evil(), protocol=0),
    "a class": pickle.dumps(OrderedDict(a=1)),
    "a numpy array": pickle.dumps(np.ones(3)),
    "a numpy integer": pickle.dumps(([[np.int64(3)]], [1])),
    "a persistent id": b"P1\n.",
    "an extension code": b"\x82\x01.",
    "a string": pickle.dumps("text"),
    "a float": pickle.dumps(1.5),
    "a huge memo index": b"\x80\x02]r\xff\xff\xff\x7f.",
    "a huge memo index, protocol 0": b"(lp99999999999\n.",
    "a huge frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f].",
    "truncated": pickle.dumps(TRAIN)[:-9],
    "empty": b"",
    "text": b"session,item,time\n1,2,3\n",
    "an unknown memo": b"\x80\x02h\x05.",
    "an empty stack": b"\x80\x02.",
    "an append to an integer": b"\x80\x02K\x01K\x02a.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(tmp_path, name, capsys):
    path = tmp_path / "train.txt"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(InputError, match=r"train\.txt: "):
        load(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "train",
    [
        [], 5, (TRAIN[0],), (TRAIN[0], [1]), ([1, 2], [1, 2]), ([[]], [1]), ([[1, [2]]], [1]), ([[1]], [[2]]),
        ([[0]], [1]), ([[-1]], [1]), ([[1]], [2**70]), ([[1]], [2**40]), ([], []), (shared(2), [1] * 10),
        (shared(1) * 999, [1] * 9990),
    ],
)  # fmt: skip
def test_other_structures_are_refused(tmp_path, train):
    with pytest.raises(InputError, match=r"train\.txt: "):
        read_pickles(write(tmp_path, train=train))
