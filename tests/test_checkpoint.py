import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmsrec_jax.checkpoint import Checkpoints, load_arrays, save_arrays
from dmsrec_jax.errors import InputError

TREE = {"a": {"w": jnp.arange(6, dtype=jnp.float32).reshape(2, 3) / 7}, "b": jnp.asarray([1, 2], jnp.int32)}


def same(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_arrays_come_back_bit_equal(tmp_path):
    save_arrays(tmp_path / "model", TREE)
    same(load_arrays(tmp_path / "model", TREE), TREE)


def test_saving_again_replaces(tmp_path):
    save_arrays(tmp_path / "model", TREE)
    doubled = jax.tree.map(lambda x: 2 * x, TREE)
    save_arrays(tmp_path / "model", doubled)
    same(load_arrays(tmp_path / "model", TREE), doubled)


@pytest.mark.parametrize(
    "like",
    [
        {"a": {"w": jnp.zeros((3, 2))}, "b": TREE["b"]},
        {"a": {"v": jnp.zeros((2, 3))}, "b": TREE["b"]},
        {"a": TREE["a"]},
    ],
    ids=["shape", "name", "missing"],
)
def test_arrays_of_another_model_are_refused(tmp_path, like):
    save_arrays(tmp_path / "model", TREE)
    with pytest.raises(InputError, match="model"):
        load_arrays(tmp_path / "model", like)


def test_every_damaged_file_is_noticed(tmp_path):
    """Cutting or emptying any file of a saved model gives one line, or the same arrays where nothing needs the file."""
    whole = tmp_path / "model"
    save_arrays(whole, TREE)
    files, complaints = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file()), []
    for number, name in enumerate(files):
        for keep in (0, 0.5):
            folder = tmp_path / f"{number}-{keep}"
            shutil.copytree(whole, folder)
            content = (whole / name).read_bytes()
            (folder / name).write_bytes(content[: int(len(content) * keep)])
            try:
                found = load_arrays(folder, TREE)
            except InputError as error:
                complaints.append(str(error))
            else:
                same(found, TREE)
    assert len(complaints) > 4
    assert all(len(line.splitlines()) == 1 and len(line) < 500 for line in complaints)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nothing"):
        load_arrays(tmp_path / "nothing", TREE)


def test_checkpoints_keep_the_latest(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest(TREE) is None
    assert checkpoints.notes() is None
    for epoch in (1, 2, 3):
        checkpoints.save(epoch, jax.tree.map(lambda x, e=epoch: x * e, TREE), {"history": [0.1] * epoch})
    checkpoints.close()
    assert Checkpoints(tmp_path / "checkpoints").notes() == {"history": [0.1] * 3}, "whatever form the state has"
    epoch, state, notes = Checkpoints(tmp_path / "checkpoints").latest(TREE)
    assert epoch == 3
    assert notes == {"history": [0.1] * 3}
    same(state, jax.tree.map(lambda x: x * 3, TREE))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, TREE, {})
    with pytest.raises(InputError, match="not a checkpoint of this run"):
        checkpoints.latest({"a": TREE["a"]})


def test_a_full_disk_is_an_error_of_the_folder(tmp_path):
    """A limit on file sizes stands for the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    large = {"w": np.random.default_rng(0).normal(size=100_000)}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        with pytest.raises(OSError, match=r"File too large: '.*model'"):
            save_arrays(tmp_path / "model", large)
        with pytest.raises(OSError, match=r"File too large: '.*checkpoints'"):
            checkpoints.save(1, large, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "model").exists()
