"""The dataset folder: what is written is what is read; a changed file is refused; chains validate whole."""

import json
import subprocess
import sys

import numpy as np
import pytest

from dmsrec_jax.data import SessionDataset
from dmsrec_jax.data.dataset import Sessions, Split
from dmsrec_jax.data.samples import last_clicks, prefixes
from dmsrec_jax.data.splits import n_first, validation_split
from dmsrec_jax.data.write import Prepared, write_dataset
from dmsrec_jax.errors import InputError

WHOLE = Sessions(np.array([1, 2, 3, 4, 5, 1, 2, 2, 3, 4], np.int32), np.array([0, 3, 4, 6, 8, 10]))
TEST = Sessions(np.array([1, 2, 5], np.int32), np.array([0, 3]))


@pytest.fixture
def folder(tmp_path):
    prepared = Prepared(prefixes(WHOLE), prefixes(TEST), WHOLE, list("abcde"), ["A", "", "C", "Ü", "E"])
    write_dataset(prepared, tmp_path / "d", name="tiny", provenance={"source": "test"})
    return tmp_path / "d"


def test_round_trip(folder):
    d = SessionDataset.load(folder, verify=True)
    assert (d.name, d.n_items) == ("tiny", 5)
    assert d.item_ids == ["", "a", "b", "c", "d", "e"]
    assert d.titles == ["", "A", "", "C", "Ü", "E"]
    assert [d.train[i].tolist() for i in range(len(d.train))] == [[1], [1, 2], [5], [2], [3]]
    assert d.train.targets.tolist() == [2, 3, 1, 2, 4]
    assert d.train.chains.tolist() == [0, 0, 2, 3, 4]
    assert d.test.chains.tolist() == [0, 0]
    assert d.meta["counts"]["clicks"] == 13
    assert isinstance(d.train.items, np.memmap)


def test_hash_is_of_the_files_alone(folder, tmp_path):
    prepared = Prepared(prefixes(WHOLE), prefixes(TEST), WHOLE, list("abcde"), ["A", "", "C", "Ü", "E"])
    other = write_dataset(prepared, tmp_path / "e", name="other", provenance={})
    assert other.hash == SessionDataset.load(folder).hash
    less = write_dataset(
        Prepared(last_clicks(WHOLE), prefixes(TEST), WHOLE, list("abcde")), tmp_path / "f", name="f", provenance={}
    )
    assert less.hash != other.hash


def test_rows_are_stored_by_chain(tmp_path):
    split = Split(np.array([4, 1, 1, 2], np.int32), np.array([0, 1, 2, 4]), np.array([5, 2, 3]), np.array([1, 0, 0]))
    d = write_dataset(Prepared(split, prefixes(TEST), WHOLE, list("abcde")), tmp_path / "d", name="d", provenance={})
    assert [d.train[i].tolist() for i in range(3)] == [[1], [1, 2], [4]]
    assert d.train.targets.tolist() == [2, 3, 5]
    assert d.train.chains.tolist() == [0, 0, 1]


def test_validation_takes_whole_chains_from_the_end(folder):
    d = SessionDataset.load(folder)
    train, valid, sessions = validation_split(d, 0.5)  # 4 chains with rows: two train, two validate
    assert train.chains.tolist() == [0, 0, 2]
    assert valid.chains.tolist() == [3, 4]
    assert [valid[i].tolist() for i in range(2)] == [[2], [3]]
    assert valid.targets.tolist() == [2, 4]
    assert [sessions[i].tolist() for i in range(len(sessions))] == [[1, 2, 3], [4], [5, 1]]
    for split in (train, valid):
        assert split.offsets[0] == 0
        assert split.offsets[-1] == len(split.items)


@pytest.mark.parametrize("fraction", [0.0, 1.0, 0.999])
def test_validation_refuses_an_empty_part(folder, fraction):
    with pytest.raises(InputError, match="--validation-fraction"):
        validation_split(SessionDataset.load(folder), fraction)


def test_first_share_is_not_shaken_by_rounding():
    assert [n_first(n, 0.1) for n in (10, 30, 77_674, 22_363)] == [9, 27, 69_906, 20_126]
    assert n_first(10, 0.9) == 1


def test_loading_needs_neither_jax_nor_torch(folder):
    code = (
        "import sys; from dmsrec_jax.data import SessionDataset; SessionDataset.load(sys.argv[1], verify=True).titles; "
        "print(sorted({'jax', 'jaxlib', 'torch', 'flax'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code, str(folder)], text=True) == "[]\n"


def overwrite_meta(folder, **changes):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | changes))


def counts(folder, **changes):
    return json.loads((folder / "meta.json").read_text())["counts"] | changes


DAMAGES = {
    "no meta": lambda d: (d / "meta.json").unlink(),
    "empty meta": lambda d: (d / "meta.json").write_text(""),
    "foreign meta": lambda d: (d / "meta.json").write_text("[1, 2]"),
    "other schema": lambda d: overwrite_meta(d, schema_version=99),
    "no counts": lambda d: overwrite_meta(d, counts={}),
    "counts of text": lambda d: overwrite_meta(d, counts=counts(d, items="5")),
    "no files": lambda d: overwrite_meta(d, files=None),
    "a file outside": lambda d: overwrite_meta(d, files={"../x": "0"}),
    "rows miscounted": lambda d: overwrite_meta(d, counts=counts(d, train_rows=4)),
    "missing array": lambda d: (d / "train_items.npy").unlink(),
    "empty array file": lambda d: (d / "train_items.npy").write_bytes(b""),
    "truncated array": lambda d: (d / "train_items.npy").write_bytes((d / "train_items.npy").read_bytes()[:-2]),
    "foreign array": lambda d: (d / "train_items.npy").write_bytes(b"hello " * 50),
    "objects": lambda d: np.save(d / "train_targets.npy", np.array([{}] * 5), allow_pickle=True),
    "wrong dtype": lambda d: np.save(d / "train_targets.npy", np.ones(5)),
    "fewer targets": lambda d: np.save(d / "train_targets.npy", np.ones(4, np.int32)),
    "id too large": lambda d: np.save(d / "test_targets.npy", np.array([1, 6], np.int32)),
    "padding inside": lambda d: np.save(d / "test_targets.npy", np.array([1, 0], np.int32)),
    "offsets fall": lambda d: np.save(d / "test_offsets.npy", np.array([0, 4, 3])),
    "chains fall": lambda d: np.save(d / "train_chains.npy", np.array([2, 0, 0, 3, 4], np.int32)),
    "chain beyond": lambda d: np.save(d / "train_chains.npy", np.array([0, 0, 2, 3, 5], np.int32)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused(folder, damage):
    DAMAGES[damage](folder)
    with pytest.raises(InputError) as caught:
        SessionDataset.load(folder)
    assert str(folder) in str(caught.value)


def test_changed_content_is_refused_when_verified(folder):
    np.save(folder / "train_targets.npy", np.array([2, 3, 1, 2, 5], np.int32))
    SessionDataset.load(folder)
    with pytest.raises(InputError, match=r"train_targets\.npy: its SHA-256"):
        SessionDataset.load(folder, verify=True)


@pytest.mark.parametrize("value", ['["", "a"]', '{"a": 1}', '["", 1, 2, 3, 4, 5]'])
def test_titles_must_fit(folder, value):
    (folder / "titles.json").write_text(value)
    with pytest.raises(InputError, match=r"titles\.json: a list of 6 strings"):
        _ = SessionDataset.load(folder).titles
