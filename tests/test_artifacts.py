import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dmsrec_jax import files
from dmsrec_jax.artifacts import (
    IntentLists,
    Intents,
    SessionIntents,
    read_candidates,
    read_intents,
    read_item_text,
    write_candidates,
    write_intents,
    write_item_text,
)
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
    write_candidates(tmp_path / "candidates", candidates, tiny, {"run": "test"})
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
        write_candidates(folder, candidates, tiny, {"run": "test"})
    candidates["test"][:] = 1
    write_candidates(folder, candidates, tiny, {"run": "test"}, overwrite=True)
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
        write_candidates(tmp_path / "new", change(candidates), tiny, {"run": "test"})
    assert list(tmp_path.iterdir()) == []


def test_another_dataset_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="another dataset"):
        read_candidates(folder, write_tiny(tmp_path / "other", seed=4))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1, "files": 3}', '{"schema_version": 99}'])
def test_a_foreign_description_is_refused(folder, tiny, text):
    (folder / "candidates.json").write_text(text)
    with pytest.raises(InputError, match=r"candidates\.json"):
        read_candidates(folder, tiny)


def test_a_description_without_provenance_is_refused(folder, tiny):
    description = json.loads((folder / "candidates.json").read_text())
    (folder / "candidates.json").write_text(json.dumps({**description, "provenance": None}))
    with pytest.raises(InputError, match=r"candidates\.json: provenance"):
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


def intents_of(tiny: SessionDataset, candidates, seed: int = 0) -> Intents:
    """Random intents; some sessions have none of a class."""
    rng = np.random.default_rng(seed)

    def lists(n: int) -> IntentLists:
        counts = rng.integers(0, 3, n)
        return IntentLists(np.append(0, np.cumsum(counts)).astype(np.int32), rng.integers(0, 4, counts.sum(), np.int32))

    parts = {
        part: SessionIntents(lists(len(rows)), lists(len(rows)), candidates[part])
        for part, rows in (("train", tiny.train), ("test", tiny.test))
    }
    return Intents(np.array(["Café", "b", "c", "d"]), rng.random((4, 3)).astype(np.float16), **parts)


def same(found: Intents, written: Intents) -> bool:
    pairs = zip(leaves(found), leaves(written), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def leaves(tree) -> list[np.ndarray]:
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, tuple) else [np.asarray(tree)]


@pytest.fixture
def intents(tiny, candidates) -> Intents:
    return intents_of(tiny, candidates)


def test_intents_that_are_written_are_read(intents, tiny, tmp_path):
    write_intents(tmp_path / "i", intents, tiny, {"engine": "test"})
    assert same(read_intents(tmp_path / "i", tiny), intents)
    meta = json.loads((tmp_path / "i/meta.json").read_text())
    assert meta["provenance"] == {"engine": "test"}
    assert meta["counts"] == {"intents": 4, "d_text": 3}
    titles = np.load(tmp_path / "i/candidate_titles.npy")
    assert titles.tolist() == tiny.titles


def test_intents_go_beside_what_is_there(intents, tiny, candidates, tmp_path):
    folder = tmp_path / "out"
    (folder / "answers").mkdir(parents=True)
    (folder / "answers/index").write_text("1")
    killed = subprocess.Popen(["true"])
    killed.wait()
    (folder / f".staged.{files._HOST}.{killed.pid}.abcdefgh").mkdir()
    write_intents(folder, intents, tiny, {})
    with pytest.raises(InputError, match="--overwrite"):
        write_intents(folder, intents, tiny, {})
    other = intents_of(tiny, candidates, seed=1)
    write_intents(folder, other, tiny, {}, overwrite=True)
    assert same(read_intents(folder, tiny), other)
    assert (folder / "answers/index").read_text() == "1"
    assert not list(folder.glob(".*"))


def test_a_death_while_the_files_move_leaves_no_whole_folder(intents, tiny, candidates, tmp_path, monkeypatch):
    """At each move: meta.json is there only with all of its files."""
    write_intents(tmp_path / "old", intents, tiny, {})
    n = len(list((tmp_path / "old").iterdir()))
    for dies_at in range(n):
        folder = tmp_path / f"dies-{dies_at}"
        write_intents(folder, intents, tiny, {})
        moves = []

        def replace(self, target, moves=moves, dies_at=dies_at, folder=folder):
            if Path(target).parent == folder:
                moves.append(target)
                if len(moves) == dies_at + 1:
                    raise KeyboardInterrupt
            self.rename(target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", replace)
            with pytest.raises(KeyboardInterrupt):
                write_intents(folder, intents_of(tiny, candidates, seed=1), tiny, {}, overwrite=True)
        with pytest.raises(InputError, match=r"meta\.json"):
            read_intents(folder, tiny)


def cut(lists: IntentLists) -> IntentLists:
    return IntentLists(lists.offsets[:-1], lists.ids)


def backwards(lists: IntentLists) -> IntentLists:
    return IntentLists(lists.offsets[::-1], lists.ids)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda i: i._replace(embeddings=i.embeddings[:-1]), "3 rows where 4 are due"),
        (lambda i: i._replace(embeddings=i.embeddings.astype(np.float64)), "float64 where float16 or float32"),
        (lambda i: i._replace(embeddings=i.embeddings * np.float16(np.nan)), "row 0 is not finite"),
        (lambda i: i._replace(titles=np.arange(4)), "strings are due"),
        (lambda i: i._replace(titles=i.titles[:3], embeddings=i.embeddings[:3]), "an intent outside 0 to 2"),
        (lambda i: i._replace(test=i.train), "entries where"),
        (lambda i: i._replace(train=i.train._replace(latent=cut(i.train.latent))), "entries where"),
        (lambda i: i._replace(train=i.train._replace(latent=backwards(i.train.latent))), "does not describe"),
        (lambda i: i._replace(test=i.test._replace(candidates=i.test.candidates - 1)), "outside 1 to 30"),
    ],
    ids=["rows", "float64", "nan", "titles", "ids", "part", "offsets", "descending", "candidates"],
)
def test_intents_that_do_not_fit_are_not_written(intents, tiny, tmp_path, change, complaint):
    with pytest.raises(InputError, match=complaint):
        write_intents(tmp_path / "new", change(intents), tiny, {})
    assert list(tmp_path.iterdir()) == []


def test_intents_of_another_dataset_or_changed_ones_are_refused(intents, tiny, tmp_path):
    folder = tmp_path / "i"
    write_intents(folder, intents, tiny, {})
    with pytest.raises(InputError, match="another dataset"):
        read_intents(folder, write_tiny(tmp_path / "other", seed=4))
    np.save(folder / "train_latent_ids.npy", np.load(folder / "train_latent_ids.npy")[::-1])
    with pytest.raises(InputError, match=r"train_latent_ids\.npy: its SHA-256"):
        read_intents(folder, tiny)


def test_item_text_that_is_written_is_read(tiny, tmp_path):
    embeddings = np.random.default_rng(0).random((N_ITEMS + 1, 5), np.float32)
    embeddings[0] = 0
    write_item_text(tmp_path / "items", embeddings, tiny, {"encoder": "test"})
    np.testing.assert_array_equal(read_item_text(tmp_path / "items", tiny), embeddings)
    assert json.loads((tmp_path / "items/meta.json").read_text())["counts"]["items_with_text"] == N_ITEMS
    with pytest.raises(InputError, match="--overwrite"):
        write_item_text(tmp_path / "items", embeddings, tiny, {})
    with pytest.raises(InputError, match="it is something else"):
        write_item_text(tiny.path, embeddings, tiny, {}, overwrite=True)


@pytest.mark.parametrize(("rows", "value"), [(N_ITEMS, 1.0), (N_ITEMS + 1, np.inf)])
def test_item_text_that_does_not_fit_is_not_written(tiny, tmp_path, rows, value):
    with pytest.raises(InputError, match=r"rows where|not finite"):
        write_item_text(tmp_path / "items", np.full((rows, 5), value, np.float32), tiny, {})
    assert list(tmp_path.iterdir()) == []
