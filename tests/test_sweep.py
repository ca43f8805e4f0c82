"""Sweeps against single runs of `train`, from the YAML file to the run folders."""

import json
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from dmsrec_jax import sweep
from dmsrec_jax.checkpoint import Checkpoints
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.members import MemberProgram
from dmsrec_jax.metrics import METRICS, VIEWS
from dmsrec_jax.parallel import Devices
from dmsrec_jax.runs import load_run
from dmsrec_jax.train import main as train
from tests.conftest import command, four_devices, write_tiny, write_tiny_intents

BASE = {"d": 8, "batch_size": 16, "epochs": 12, "patience": 12, "lr": 0.01}


def call(main, *argv: object) -> None:
    main([str(word) for word in argv])


def write_plan(path: Path, **spec) -> Path:
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


def read(path: Path):
    return json.loads(path.read_text())


def history(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def swept(tiny: SessionDataset, tiny_intents: Path, tmp_path_factory) -> Path:
    """Fused: a weight of the alignment, another alignment, a class of intents left out; plain; another backbone.

    Two seeds of each.
    """
    folder = tmp_path_factory.mktemp("sweep")
    settings = {
        "weak": {"align_weight": 0.1},
        "directau": {"align": "directau", "alpha": 2.0},
        "no-latent": {"ablation": "no-latent", "patience": 1},
        "plain": {"intents": None},
        "gcegnn": {"backbone": "gcegnn"},
    }
    base = BASE | {"backbone": "srgnn", "align_weight": 0.5}
    plan = write_plan(folder / "plan.yaml", base=base, seeds=[3, 4], settings=settings)
    inputs = ("--dataset", tiny.path, "--intents", tiny_intents)
    call(sweep.main, "--config", plan, *inputs, "--out", folder / "out", "--members-at-once", 4)
    return folder / "out"


@pytest.mark.parametrize("setting", ["weak", "directau", "no-latent", "plain", "gcegnn"])
def test_each_run_is_the_one_that_train_makes(swept: Path, setting: str, tmp_path):
    """Its kept settings repeat it: the same losses over 100 steps, the same epochs and metrics."""
    run = swept / setting / "seed-4"
    call(train, "--config", run / "config.yaml", "--out", tmp_path / "alone")
    ours, alone = history(run), history(tmp_path / "alone")
    assert len(ours) == len(alone)
    assert setting == "no-latent" or len(ours) == 12
    for one, other in zip(ours, alone, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["lr"] == other["lr"]
    results, due = read(run / "results.json"), read(tmp_path / "alone" / "results.json")
    assert results.keys() == due.keys()
    assert results["best_epoch"] == due["best_epoch"]
    for view in VIEWS:
        for metric in METRICS:
            assert results["test"][view][metric] == pytest.approx(due["test"][view][metric], abs=1.0)
    np.testing.assert_allclose(np.load(run / "ranks.npy"), np.load(tmp_path / "alone" / "ranks.npy"), atol=1)


def test_the_first_hundred_steps_are_those_of_train(tiny: SessionDataset, tiny_intents: Path, tmp_path, monkeypatch):
    """An epoch is one step here: all sessions are one batch."""
    base = BASE | {"backbone": "srgnn", "batch_size": len(tiny.train), "epochs": 100, "patience": 100, "lr_decay": 1.0}
    plan = write_plan(tmp_path / "plan.yaml", base=base, grid={"align_weight": [0.2, 0.7]}, seeds=[3])
    inputs = ("--dataset", tiny.path, "--intents", tiny_intents)
    call(sweep.main, "--config", plan, *inputs, "--out", tmp_path / "out", "--members-at-once", 2)
    run = tmp_path / "out" / "align_weight=0.7" / "seed-3"
    monkeypatch.setattr(Checkpoints, "save", lambda *_: None)  # a hundred take long
    call(train, "--config", run / "config.yaml", "--out", tmp_path / "alone")
    ours, alone = ([entry["loss"] for entry in history(path)] for path in (run, tmp_path / "alone"))
    assert len(ours) == 100
    assert ours[-1] < ours[0] - 0.5, "it learns"
    np.testing.assert_allclose(ours, alone, rtol=1e-4)


def test_its_runs_are_run_folders(swept: Path):
    for run in (swept / "weak" / "seed-3", swept / "no-latent" / "seed-4", swept / "gcegnn" / "seed-3"):
        np.testing.assert_array_equal(load_run(run).score_test(), np.load(run / "ranks.npy"))


def test_the_summary_is_of_the_runs(swept: Path):
    summary = read(swept / "sweep.json")
    assert [entry["name"] for entry in summary["settings"]] == [
        "weak", "directau", "no-latent", "plain", "gcegnn",
    ]  # fmt: skip
    for entry in summary["settings"]:
        values = [read(swept / run / "results.json")["test"]["raw"]["hr@20"] for run in entry["runs"]]
        assert len(values) == 2
        assert entry["test"]["raw"]["hr@20"] == pytest.approx(np.mean(values))
        assert entry["test_std"]["raw"]["hr@20"] == pytest.approx(np.std(values, ddof=1))
        assert entry["missing"] == []


def test_run_again_it_trains_what_is_missing(swept: Path, tiny: SessionDataset, tiny_intents: Path, tmp_path, refused):
    again = tmp_path / "out"
    shutil.copytree(swept, again)
    shutil.rmtree(again / "weak" / "seed-3")
    kept = (again / "weak" / "seed-4" / "results.json").stat().st_mtime_ns
    flags = ("--config", swept.parent / "plan.yaml", "--dataset", tiny.path, "--out", again)
    call(sweep.main, *flags, "--intents", tiny_intents)
    one, other = (np.load(folder / "weak" / "seed-3" / "ranks.npy") for folder in (swept, again))
    np.testing.assert_allclose(one, other, atol=1)
    assert (again / "weak" / "seed-4" / "results.json").stat().st_mtime_ns == kept
    assert "began with --epochs 12, not 2" in refused(sweep.main, *flags, "--intents", tiny_intents, "--epochs", 2)
    changed = ("--intents", tiny_intents, "--epochs", 2, "--seeds", 5)
    assert "began with --epochs 12, not 2" in refused(sweep.main, *flags, *changed), "seeds are summed up together"
    other_plan = write_plan(tmp_path / "plan.yaml", base=BASE | {"backbone": "srgnn"}, settings={"free": {"epochs": 1}})
    call(sweep.main, "--config", other_plan, *flags[2:])
    entries = {entry["name"]: entry for entry in read(again / "sweep.json")["settings"]}
    assert entries["weak"]["runs"] == ["weak/seed-3", "weak/seed-4"], "another plan's results stay"
    assert entries["free"]["runs"] == ["free/seed-0"]
    call(sweep.main, "--config", other_plan, *flags[2:], "--seeds", 1)
    entries = {entry["name"]: entry for entry in read(again / "sweep.json")["settings"]}
    assert entries["free"]["runs"] == ["free/seed-0", "free/seed-1"]
    other_data = write_tiny(tmp_path / "other", seed=9)
    other = write_tiny_intents(tmp_path / "intents", other_data)
    moved = ("--config", swept.parent / "plan.yaml", "--dataset", other_data.path, "--intents", other, "--out", again)
    assert "began on another --dataset, by hash" in refused(sweep.main, *moved)
    judged = write_plan(tmp_path / "paper.yaml", base=BASE | {"backbone": "srgnn", "protocol": "paper"})
    paper = ("--config", judged, *flags[2:])
    assert "began with --protocol default, not paper" in refused(sweep.main, *paper), "one table has one protocol"
    wrong = write_plan(tmp_path / "wrong.yaml", base=BASE | {"backbone": "srgnn", "validation_fraction": 0.0})
    refused(sweep.main, "--config", wrong, *flags[2:], "--overwrite")
    assert (again / "weak" / "seed-3" / "results.json").is_file(), "nothing is lost while flags are wrong"


def test_intents_that_changed_are_another_sweep(tiny: SessionDataset, tmp_path, refused):
    intents = write_tiny_intents(tmp_path / "intents", tiny)
    plan = write_plan(tmp_path / "plan.yaml", base=BASE | {"backbone": "srgnn", "epochs": 1})
    flags = ("--config", plan, "--dataset", tiny.path, "--intents", intents, "--out", tmp_path / "out")
    call(sweep.main, *flags)
    shutil.rmtree(intents)
    write_tiny_intents(intents, tiny, seed=8)
    assert "base began on another --intents" in refused(sweep.main, *flags)


def test_a_run_that_diverges_leaves_the_others(tiny: SessionDataset, tmp_path, capsys):
    plan = write_plan(tmp_path / "plan.yaml", base=BASE | {"backbone": "srgnn"}, grid={"lr": [0.01, 1.0e38]})
    call(sweep.main, "--config", plan, "--dataset", tiny.path, "--out", tmp_path / "out", "--members-at-once", 2)
    assert "the loss is" in capsys.readouterr().out
    calm, wild = read(tmp_path / "out" / "sweep.json")["settings"]
    assert calm["runs"] == ["lr=0.01/seed-0"]
    assert wild["missing"] == ["lr=1e+38/seed-0"]
    assert not (tmp_path / "out" / "lr=1e+38").exists()


def test_where_memory_does_not_suffice_fewer_train_at_once(tiny: SessionDataset, tmp_path, capsys, monkeypatch):
    class JaxRuntimeError(RuntimeError):
        """As jax names its own."""

    def run_out(self, epoch: int, run=MemberProgram.run):
        if len(self._keys) > 2:
            raise JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return run(self, epoch)

    def start(self, members, start=MemberProgram.start):
        assert not any(isinstance(leaf, jax.Array) for one in members for leaf in jax.tree.leaves(one.state))
        return start(self, members)

    monkeypatch.setattr(MemberProgram, "run", run_out)
    monkeypatch.setattr(MemberProgram, "start", start)
    base = BASE | {"backbone": "srgnn", "epochs": 1}
    plan = write_plan(tmp_path / "plan.yaml", base=base, grid={"lr": [0.01, 0.02, 0.03]})
    flags = ("--config", plan, "--dataset", tiny.path, "--out", tmp_path / "out", "--devices", 1)
    call(sweep.main, *flags, "--members-at-once", 9)
    printed = capsys.readouterr().out
    assert "out of memory with 3 runs at once" in printed
    assert all(not entry["missing"] for entry in read(tmp_path / "out" / "sweep.json")["settings"])


def test_no_device_trains_a_copy(tiny: SessionDataset, tmp_path, monkeypatch):
    class OfFour(Devices):
        def __init__(self, wanted: int | None) -> None:
            super().__init__(1)
            self.count = 4 if wanted is None else wanted

    counts: list[int] = []
    monkeypatch.setattr(sweep, "Devices", OfFour)
    monkeypatch.setattr(sweep, "train_group", lambda *args: counts.append(args[3].count))
    plan = write_plan(tmp_path / "plan.yaml", base=BASE | {"backbone": "srgnn"}, settings={"a": {}, "b": {"d": 4}})
    for seeds, count in ([0, 1], 2), (range(6), 4):
        flags = ("--config", plan, "--dataset", tiny.path, "--out", tmp_path / "out", "--seeds", *seeds)
        call(sweep.main, *flags)
        assert counts[-2:] == [count, count], "one group for each d"


def test_four_devices_train_what_one_does(tiny: SessionDataset, tiny_intents: Path, tmp_path):
    """Five runs on eight places of four devices, and one after the other on one."""
    base = BASE | {"backbone": "gcegnn", "epochs": 1, "intents": str(tiny_intents), "dataset": str(tiny.path)}
    plan = write_plan(tmp_path / "plan.yaml", base=base, grid={"align_weight": [0.0, 0.3, 0.5, 0.7, 0.9]})
    flags = ("--config", plan, "--out")
    words = command("sweep", *flags, tmp_path / "four", "--members-at-once", 2)
    subprocess.run(words, env=four_devices(), check=True, stdout=subprocess.DEVNULL)
    call(sweep.main, *flags, tmp_path / "one", "--devices", 1, "--members-at-once", 1)
    for weight in (0.0, 0.9):
        runs = [tmp_path / count / f"align_weight={weight}" / "seed-0" for count in ("one", "four")]
        one, other = (history(run)[0]["loss"] for run in runs)
        assert one == pytest.approx(other, rel=1e-5)
        params = [jax.tree.leaves(load_run(run).params) for run in runs]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *params)
