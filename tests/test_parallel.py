"""Four forced CPU devices against one. The device count is fixed when jax starts, so both run in child processes."""

import json
import os
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.parallel import Devices
from dmsrec_jax.train import main
from tests.conftest import SMALL, command, four_devices

ONE_EPOCH_EACH = """
import sys
from pathlib import Path
import jax, numpy as np
from dmsrec_jax.config import TrainConfig
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.parallel import Devices
from dmsrec_jax.runs import new_model
from dmsrec_jax.steps import initial_state
from rich.console import Console
from dmsrec_jax.epochs import EpochProgram
from dmsrec_jax.recipe import hyper, item_graph, model_settings, parts, read_artifacts

dataset, arrays = SessionDataset.load(sys.argv[1]), {}
for count in (1, 4):
    config = TrainConfig(
        "gcegnn", batch_size=16, d=8, dropout_global=0.0, lr=0.01, n_neighbors=4, devices=count, protocol="paper",
        intents=Path(sys.argv[3]), item_text=Path(sys.argv[4]), align="infonce",
    )
    inputs = read_artifacts(config, dataset)
    settings, devices = model_settings(config, inputs), Devices(count, config.batch_size)
    (rows, intents), _, _, sessions = parts(config, inputs)
    graph = item_graph(config, dataset, sessions)
    program, params = new_model(settings, graph, jax.random.key(0), inputs.item_text)
    epoch = EpochProgram(rows, config.batch_size, program, devices, jax.random.key(1), Console(), intents)
    state = devices.put(initial_state(params, hyper(config), jax.random.key(2)), donated=True)
    epoch.compile(state)
    state, loss = epoch.run(state, 0)
    arrays[f"sessions{count}"] = np.sort(np.concatenate([part.reshape(-1) for part in epoch.orders(0)]))
    arrays[f"loss{count}"] = loss
    for i, leaf in enumerate(jax.tree.leaves(devices.get(state.params))):
        arrays[f"params{count}/{i}"] = leaf
np.savez(sys.argv[2], **arrays)
"""


def test_four_devices_take_the_steps_of_one(tiny: SessionDataset, tiny_intents, tiny_titles, tmp_path):
    """Also where a session is compared with all others of its batch (infonce)."""
    out = tmp_path / "arrays.npz"
    words = [sys.executable, "-c", ONE_EPOCH_EACH, tiny.path, out, tiny_intents, tiny_titles]
    subprocess.run(words, env=four_devices(), check=True)
    with np.load(out) as arrays:
        np.testing.assert_array_equal(arrays["sessions1"], arrays["sessions4"])
        np.testing.assert_array_equal(np.unique(arrays["sessions1"]), np.arange(len(tiny.train) + 1))
        assert float(arrays["loss4"]) == pytest.approx(float(arrays["loss1"]), abs=1e-5)
        ones = [name for name in arrays.files if name.startswith("params1/")]
        assert len(ones) > 10
        for one in ones:
            np.testing.assert_allclose(arrays[one.replace("1/", "4/")], arrays[one], atol=1e-5, err_msg=one)


def test_train_on_four_devices_and_resume_on_one(tiny, tmp_path):
    run = tmp_path / "run"
    flags = ["--backbone", "srgnn", "--dataset", tiny.path, "--out", run, *SMALL]
    words = command("train", *flags, "--devices", 4)
    subprocess.run(words, env=four_devices(), check=True, stdout=subprocess.DEVNULL)
    (run / "results.json").rename(tmp_path / "four.json")  # as if killed while the last epoch was being scored
    subprocess.run(command("train", *flags, "--resume"), check=True, stdout=subprocess.DEVNULL)
    four, one = (json.loads(path.read_text()) for path in (tmp_path / "four.json", run / "results.json"))
    assert four["test"] == one["test"]
    assert one["epochs"] == 2


def test_shares_give_every_device_sessions_of_all_lengths():
    devices = Devices(1, 8)
    devices.count = 4
    order = np.arange(24).reshape(3, 8)  # 3 steps of 8 strata, shortest first
    shares = devices.shares(order)
    assert shares.shape == (4, 3, 2)
    assert shares[1].tolist() == [[1, 5], [9, 13], [17, 21]]


def test_only_what_is_donated_is_copied():
    array, devices = jnp.zeros((9, 9)), Devices(1)
    for donated in (False, True):
        put = devices.put({"a": array}, donated=donated)["a"]
        assert (put.unsafe_buffer_pointer() == array.unsafe_buffer_pointer()) is not donated


def test_impossible_shares(tiny, tmp_path, refused):
    with pytest.raises(InputError, match="--devices 0"):
        Devices(0, 8)
    flags = ["--backbone", "srgnn", "--dataset", tiny.path, "--out", tmp_path / "run"]
    assert re.search(r"--devices 99: jax sees \d+ cpu device", refused(main, *flags, "--devices", 99))


COUNT = """
import os, sys
os.sched_setaffinity(0, {*list(os.sched_getaffinity(0))[:2]})
from dmsrec_jax.parallel import Devices, split_cpu
split_cpu(int(sys.argv[1]) or None)
print(Devices(None).count)
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
@pytest.mark.parametrize(("wanted", "flags", "count"), [(0, "", 2), (1, "", 1), (3, "", 2), (1, "four", 4)])
def test_cores_become_devices(wanted, flags, count):
    """But where XLA_FLAGS says how many there are, they stay."""
    words = [sys.executable, "-c", COUNT, str(wanted)]
    done = subprocess.run(words, env=four_devices() if flags else None, capture_output=True, text=True, check=True)
    assert int(done.stdout) == count
