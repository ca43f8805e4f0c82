import json

import numpy as np
import pytest

from dmsrec_jax.artifacts import read_candidates, write_candidates
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import sha256
from tests.conftest import N_ITEMS, write_tiny


@pytest.fixture
def candidates(tiny: SessionDataset) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    parts = {"train": len(tiny.train), "test": len(tiny.test)}
    return {part: rng.integers(1, N_ITEMS + 1, (n, 5), dtype=np.int32) for part, n in parts.items()}


@pytest.fixture
def folder(candidates, tiny: SessionDataset, tmp_path):
    write_candidates(tmp_path / "candidates", candidates, tiny)
    return tmp_path / "candidates"


def test_what_is_written_is_read(folder, candidates, tiny):
    found = read_candidates(folder, tiny)
    assert set(found) == {"train", "test"}
    for part, array in found.items():
        assert array.dtype == np.int32
        np.testing.assert_array_equal(array, candidates[part])
    assert json.loads((folder / "candidates.json").read_text())["k"] == 5


def test_overwriting_is_asked_for(folder, candidates, tiny):
    with pytest.raises(InputError, match="--overwrite"):
        write_candidates(folder, candidates, tiny)
    candidates["test"][:] = 1
    write_candidates(folder, candidates, tiny, overwrite=True)
    assert (read_candidates(folder, tiny)["test"] == 1).all()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda c: c | {"test": c["test"][:-1]}, "rows where"),
        (lambda c: c | {"test": c["train"]}, "rows where"),
        (lambda c: c | {"train": c["train"] - 1}, "outside 1 to 30"),
        (lambda c: c | {"train": c["train"] + 1}, "outside 1 to 30"),
    ],
    ids=["short", "swapped", "zero", "beyond"],
)
def test_candidates_that_do_not_fit_are_not_written(candidates, tiny, tmp_path, change, complaint):
    with pytest.raises(InputError, match=complaint):
        write_candidates(tmp_path / "new", change(candidates), tiny)
    assert list(tmp_path.iterdir()) == []


def test_another_dataset_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="another dataset"):
        read_candidates(folder, write_tiny(tmp_path / "other", seed=4))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1, "files": 3}', '{"schema_version": 99}'])
def test_a_foreign_description_is_refused(folder, tiny, text):
    (folder / "candidates.json").write_text(text)
    with pytest.raises(InputError, match=r"candidates\.json"):
        read_candidates(folder, tiny)


def resign(folder) -> None:
    """Makes the hashes fit, so that only the content is at fault."""
    description = json.loads((folder / "candidates.json").read_text())
    description["files"] = {name: sha256(folder / name) for name in description["files"]}
    (folder / "candidates.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}], object),
        np.ones((3, 5), np.int32),
        np.ones((3, 5), np.int64),
        np.ones(7, np.int32),
        np.zeros((15, 5), np.int32),
    ],
    ids=["objects", "rows", "dtype", "rank", "zeros"],
)
def test_foreign_arrays_are_refused(folder, tiny, array):
    path = folder / "test_candidates.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(InputError, match="SHA-256"):
        read_candidates(folder, tiny)
    resign(folder)
    with pytest.raises(InputError, match=r"test_candidates\.npy"):
        read_candidates(folder, tiny)


def test_missing_and_cut_files_are_refused(folder, tiny):
    path = folder / "train_candidates.npy"
    path.write_bytes(path.read_bytes()[:-8])
    resign(folder)
    with pytest.raises(InputError, match=r"train_candidates\.npy"):
        read_candidates(folder, tiny)
    path.unlink()
    with pytest.raises(InputError, match="No such file"):
        read_candidates(folder, tiny)
