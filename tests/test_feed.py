"""Streamed graphs against resident ones: the same bits, whatever the chunks and the devices."""

import json
import os
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from rich.progress import Progress

from dmsrec_jax import epochs, scoring
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.feed import GraphFeed, take_sessions
from dmsrec_jax.graphs import Budget, IntentRows, build_graphs, pack, pad_graphs
from dmsrec_jax.orders import batch_budget, fixed_order
from dmsrec_jax.parallel import Devices
from dmsrec_jax.runs import load_run
from dmsrec_jax.scoring import Scorer
from dmsrec_jax.train import main
from tests.conftest import SMALL, random_sessions

FOUR = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
"""Without the tests' other flags: compiled with those, the two differ in the last bit."""
STREAM = ("--device-data-mb", 0.01)
"""Less than `tiny` takes, more than one of its steps."""


def same_arrays(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def some_intents(n: int) -> IntentRows:
    rng = np.random.default_rng(1)
    sizes = np.append(rng.integers(0, 4, 2 * n), [0, 0])
    offsets = np.append(0, np.cumsum(sizes)).astype(np.int32)
    return IntentRows(offsets, rng.integers(0, 7, offsets[-1]).astype(np.int32), rng.random((7, 3)).astype(np.float16))


@pytest.mark.parametrize("fused", [False, True])
def test_a_chunk_packs_into_the_batches_of_the_whole(fused):
    sessions = random_sessions(3, 50)
    graphs = build_graphs(sessions, np.arange(1, 51, dtype=np.int32), some_intents(50) if fused else None)
    order = fixed_order(graphs, 8)
    budget = batch_budget(graphs, 8, len(order))
    feed, packed = GraphFeed(graphs, budget, Devices(1, 8), 0), jax.jit(partial(pack, budget=budget))
    parts = np.split(np.append(order, np.full((1, 8), 50, np.int32), axis=0), 4)
    for part, (local, rows) in zip(parts, feed.chunks(parts), strict=True):
        assert local.click_offsets.shape == (18,)
        for step, here in zip(part, rows, strict=True):
            same_arrays(packed(local, here), packed(graphs, step))


def test_sessions_are_taken_in_the_order_given():
    sessions = random_sessions(4, 9)
    graphs = build_graphs(sessions)
    rows = np.array([8, 9, 2, 2])  # 9 is the empty one
    taken = take_sessions(graphs, rows)
    assert np.diff(taken.click_offsets).tolist() == [*sessions.lengths[[8]], 0, *sessions.lengths[[2, 2]]]
    sizes = Budget(4, len(taken.node_items), len(taken.edge_senders), len(taken.click_nodes))
    assert pad_graphs(taken, sizes).n_sessions == 4
    whole = pad_graphs(take_sessions(graphs, np.arange(9)), Budget(9, *(len(graphs[i]) for i in (1, 4, 10))))
    same_arrays(whole, graphs)


@pytest.mark.parametrize("limit", [0, 1e-3, 5e-3, 1])
def test_chunks_stay_within_the_limit(limit):
    graphs = build_graphs(random_sessions(5, 400))
    size = sum(array.nbytes for array in jax.tree.leaves(graphs))
    feed = GraphFeed(graphs, Budget(4, 64, 64, 64), Devices(1, 4), limit)
    assert feed.streams == (size > limit * 2**20)
    for steps, wanted in ((100, 5), (101, 1), (6, 6)):
        count = feed.chunk_count(steps, wanted)
        assert steps % count == 0
        assert count >= wanted
        assert not feed.streams or count == steps or 3 * size / count <= limit * 2**20
        assert feed.streams or count == wanted


def test_a_streamed_run_is_the_resident_run(tiny: SessionDataset, trained, tmp_path, monkeypatch):
    """And shows the mean loss of the chunks so far."""
    shown: list[str] = []

    class Spied(Progress):
        def update(self, *_, loss: str, **__) -> None:
            shown.append(loss)

    monkeypatch.setattr(epochs, "Progress", Spied)
    flags = ("--backbone", "gcegnn", "--dataset", tiny.path, *SMALL, "--out", tmp_path / "streamed", *STREAM)
    main([str(word) for word in flags])
    same_runs(trained, tmp_path / "streamed")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "streamed" / "metrics.jsonl").read_text().splitlines()]
    per_epoch = len(shown) // len(losses)
    assert per_epoch > 2
    assert shown[per_epoch - 1 :: per_epoch] == [f"loss {loss:.4f}" for loss in losses]


ON_FOUR_DEVICES = """
import shutil, sys
from pathlib import Path
from dmsrec_jax.train import main

out, *flags = sys.argv[1:]
resident, streamed = Path(out, "resident"), Path(out, "streamed")
main([*flags, "--out", str(resident)])
main([*flags, "--out", str(streamed), "--device-data-mb", "0.01"])
shutil.copytree(streamed, streamed.with_name("resumed"))
streamed = streamed.with_name("resumed")
(streamed / "results.json").unlink()
shutil.rmtree(streamed / "checkpoints" / "2")  # as if killed in the second epoch
main([*flags, "--out", str(streamed), "--resume", "--device-data-mb", "0"])
"""


def test_four_devices_stream_what_they_hold_and_resume(tiny: SessionDataset, tmp_path):
    flags = ("--backbone", "srgnn", "--dataset", tiny.path, *SMALL, "--devices", 4)
    words = [sys.executable, "-c", ON_FOUR_DEVICES, *map(str, (tmp_path, *flags))]
    subprocess.run(words, env=os.environ | FOUR, check=True, stdout=subprocess.DEVNULL)
    same_runs(tmp_path / "resident", tmp_path / "streamed")
    same_runs(tmp_path / "resident", tmp_path / "resumed")


def same_runs(one, other) -> None:
    np.testing.assert_array_equal(np.load(one / "ranks.npy"), np.load(other / "ranks.npy"))
    same_arrays(load_run(one).params, load_run(other).params)


def test_streamed_scores_are_the_resident_ones(tiny: SessionDataset, trained):
    run = load_run(trained)
    scorers = [Scorer(run.program, tiny.train, run.settings.n_positions, device_data_mb=mb) for mb in (1, 0)]
    one, other = (scorer.ranks(run.params) for scorer in scorers)
    np.testing.assert_array_equal(one, other)
    done: list[int] = []
    one, other = (s.top(run.params, 5, exclude_seen=True, progress=done.append) for s in scorers)
    np.testing.assert_array_equal(one, other)
    assert sum(done) == 2 * len(tiny.train)


def test_parameters_are_sent_once(tiny: SessionDataset, trained, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 1)
    monkeypatch.setattr(scoring, "BATCH", 32)
    run = load_run(trained)
    scorer, seen = Scorer(run.program, tiny.train, run.settings.n_positions), []

    def ranks(constants, params, graphs, order):
        seen.append(jax.tree.leaves(params))
        return np.zeros((*order.shape, 2), np.int32)

    monkeypatch.setattr(scorer, "_ranks", ranks)
    scorer.ranks(jax.device_get(run.params))
    assert len(seen) > 2
    for leaves in seen:
        assert all(isinstance(leaf, jax.Array) and leaf is first for leaf, first in zip(leaves, seen[0], strict=True))
