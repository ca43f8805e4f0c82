"""A run that was killed again and again ends as one that was not."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
from flax import nnx

from dmsrec_jax.checkpoint import load_arrays
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.runs import load_run
from tests.conftest import SMALL, command

KILLS = 3
TIMINGS = {"seconds", "sessions_per_s", "train_seconds", "compile_seconds"}


def without_timings(entry: dict) -> dict:
    return {key: value for key, value in entry.items() if key not in TIMINGS}


def history(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_killed_and_resumed_equals_uninterrupted(tiny: SessionDataset, tmp_path):
    flags = ("--backbone", "gcegnn", "--dataset", tiny.path, *SMALL, "--epochs", 12, "--patience", 12)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command("train", *flags, "--out", whole), check=True, stdout=subprocess.DEVNULL)

    moment = random.Random(0)
    interrupted = 0
    while True:
        words = command("train", *flags, "--out", killed, "--resume")
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if interrupted < KILLS:
            # The first kill comes anywhere; the others once training has gone on, most likely during a save.
            begun, deadline = len(history(killed)), time.monotonic() + 240
            while interrupted and process.poll() is None and len(history(killed)) == begun:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(moment.uniform(0, 0.3) if interrupted else moment.uniform(0.5, 2.5))
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors
        assert not (killed / "results.json").exists()
        interrupted += 1

    assert interrupted >= 2
    assert [*map(without_timings, history(killed))] == [*map(without_timings, history(whole))]
    np.testing.assert_array_equal(np.load(killed / "ranks.npy"), np.load(whole / "ranks.npy"))
    results = (without_timings(json.loads((run / "results.json").read_text())) for run in (killed, whole))
    assert next(results) == next(results)
    run = load_run(whole)
    like = {"params": nnx.to_pure_dict(run.params), "constants": nnx.to_pure_dict(run.program.constants)}
    one, other = (load_arrays(path / "model", like) for path in (killed, whole))
    assert set(one) == {"params", "constants"}
    for (path, ours), theirs in zip(leaves(one), (leaf for _, leaf in leaves(other)), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=path)


def leaves(tree: dict, prefix: str = "") -> list[tuple[str, np.ndarray]]:
    if not isinstance(tree, dict):
        return [(prefix, np.asarray(tree))]
    return [leaf for name in sorted(tree) for leaf in leaves(tree[name], f"{prefix}/{name}")]
