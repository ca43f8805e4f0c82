import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from dmsrec_jax import crossfit, epochs
from dmsrec_jax.candidates import main
from dmsrec_jax.cli import Terminated
from dmsrec_jax.data import SessionDataset, Sessions
from dmsrec_jax.data.samples import prefixes
from dmsrec_jax.data.splits import chain_folds
from dmsrec_jax.data.write import Prepared, write_dataset
from dmsrec_jax.recipe import item_graph
from dmsrec_jax.steps import train_steps
from dmsrec_jax.train import main as train
from tests.conftest import SMALL

PAIRS = 60
"""Sessions of `learnt`: session i clicks item i, then item PAIRS + i, which no other session does."""


def call(*argv: object) -> None:
    main([str(word) for word in argv])


def hits(folder: Path, dataset: SessionDataset, part: str) -> float:
    found = np.load(folder / f"{part}_candidates.npy")
    return float((found == getattr(dataset, part).targets[:, None]).any(1).mean())


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> SessionDataset:
    """Targets that can be known by heart and by no other way; the test sessions are training sessions."""
    first = np.arange(1, PAIRS + 1, dtype=np.int32)
    sessions = Sessions(np.stack([first, first + PAIRS], 1).reshape(-1), np.arange(0, 2 * PAIRS + 1, 2))
    ids = [f"raw-{i}" for i in range(1, 2 * PAIRS + 1)]
    prepared = Prepared(prefixes(sessions), prefixes(sessions), sessions, ids, None)
    return write_dataset(prepared, tmp_path_factory.mktemp("crossfit") / "learnt", name="learnt", provenance={})


@pytest.mark.parametrize("backbone", ["srgnn", "gcegnn"])
def test_no_fold_saw_its_sessions(learnt: SessionDataset, tmp_path, backbone):
    flags = ("--d", 16, "--batch-size", 4, "--epochs", 12, "--patience", 12, "--lr", 0.02, "--lr-decay-every", 12)
    memory = (*flags, "--protocol", "paper", *(("--n-neighbors", 2) if backbone == "gcegnn" else ()))
    train([str(w) for w in ("--backbone", backbone, "--dataset", learnt.path, "--out", tmp_path / "run", *memory)])
    call("--run", tmp_path / "run", "--k", 3, "--out", tmp_path / "plain")
    call("--run", tmp_path / "run", "--k", 3, "--out", tmp_path / "fitted", "--cross-fit", 5)
    assert hits(tmp_path / "plain", learnt, "train") > 0.9
    assert hits(tmp_path / "fitted", learnt, "train") < 0.15, "chance is 0.025"
    assert hits(tmp_path / "fitted", learnt, "test") > 0.9, "test candidates are the run's own"


def test_folds_are_trained_without_their_chains(tiny: SessionDataset, trained: Path, tmp_path, monkeypatch):
    trained_on, known, traced = [], [], []

    class Spied(crossfit.EpochProgram):
        def run(self, state, epoch):
            assert isinstance(self._program, jax.stages.Compiled), "ahead, or it would be compiled twice"
            trained_on.append(np.concatenate(self.orders(epoch)).ravel())
            return super().run(state, epoch)

    def steps(*args, **static):
        traced.append(static["budget"])
        return train_steps(*args, **static)

    def spy(config, dataset, sessions):
        known.append([sessions[i].tolist() for i in range(len(sessions))])
        return item_graph(config, dataset, sessions)

    monkeypatch.setattr(crossfit, "EpochProgram", Spied)
    monkeypatch.setattr(crossfit, "item_graph", spy)
    monkeypatch.setattr(epochs, "train_steps", steps)
    call("--run", trained, "--k", 5, "--out", tmp_path / "out", "--cross-fit", 3)
    fold = chain_folds(tiny.train, 3, 0)
    each = len(trained_on) // 3
    assert len(traced) == 1, "one program for all folds"
    for number in range(3):
        for rows in trained_on[number * each : (number + 1) * each]:
            assert sorted(rows[rows < len(fold)]) == np.flatnonzero(fold != number).tolist(), "each once, none held out"
            assert (rows[rows >= len(fold)] == len(fold)).all(), "and the empty session"
        held = set(tiny.train.chains[fold == number].tolist())
        left = [tiny.sessions[i].tolist() for i in range(len(tiny.sessions)) if i not in held]
        assert known[number] == left, "nor does the global graph know them"


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("crossfit") / "whole"
    call("--run", trained, "--k", 5, "--out", out, "--cross-fit", 3)
    return out


def test_the_folder_says_how_it_was_made(trained: Path, whole: Path, tmp_path):
    epochs = json.loads((trained / "results.json").read_text())["best_epoch"]
    provenance = json.loads((whole / "candidates.json").read_text())["provenance"]
    assert provenance["cross_fit"] == {"folds": 3, "epochs": epochs, "seed": 0}
    assert provenance["run"] == str(trained)
    assert not whole.with_name("whole.folds").exists()
    call("--run", trained, "--k", 5, "--out", tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "candidates.json").read_text())["provenance"]["cross_fit"] is None
    one, other = (np.load(out / "test_candidates.npy") for out in (whole, tmp_path / "plain"))
    np.testing.assert_array_equal(one, other)


def test_a_killed_command_goes_on_and_ends_the_same(trained: Path, whole: Path, tmp_path, monkeypatch, refused):
    inner, fitted, out = crossfit.Folds.top, [], tmp_path / "out"

    def top(self, number):
        if len(fitted) == 2:
            raise Terminated
        fitted.append(number)
        return inner(self, number)

    flags = ("--run", trained, "--k", 5, "--out", out, "--cross-fit", 3)
    monkeypatch.setattr(crossfit.Folds, "top", top)
    with pytest.raises(SystemExit) as stop:
        call(*flags)
    assert stop.value.code == 143
    assert not out.exists()
    kept = tmp_path / "out.folds"
    assert sorted(file.name for file in kept.iterdir()) == ["fold-0.npy", "fold-1.npy", "folds.json"]

    assert f"{kept}: begun with another k; give --overwrite" in refused(main, *flags, "--k", 6)
    assert "begun with another cross_fit" in refused(main, *flags, "--cross-fit", 4)
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    with (other / "config.yaml").open("a") as file:
        file.write("\n")
    assert "begun with another config.yaml" in refused(main, *flags, "--run", other)

    fitted.pop()
    call(*flags)
    assert fitted == [0, 2]
    for part in ("train", "test"):
        one, two = (np.load(folder / f"{part}_candidates.npy") for folder in (whole, out))
        np.testing.assert_array_equal(one, two)
    assert not kept.exists()


def test_overwrite_begins_anew(trained: Path, whole: Path, tmp_path):
    out, kept = tmp_path / "out", tmp_path / "out.folds"
    kept.mkdir()
    (kept / "folds.json").write_text("{}")
    call("--run", trained, "--k", 5, "--out", out, "--cross-fit", 3, "--overwrite")
    np.testing.assert_array_equal(np.load(out / "train_candidates.npy"), np.load(whole / "train_candidates.npy"))


def test_runs_with_titles(tiny: SessionDataset, tiny_titles: Path, tmp_path):
    """The titles come from the run, wherever their folder is now."""
    titles, run = tmp_path / "titles", tmp_path / "run"
    shutil.copytree(tiny_titles, titles)
    flags = ("--backbone", "srgnn", "--dataset", tiny.path, "--out", run, "--item-text", titles, *SMALL)
    train([str(word) for word in flags])
    shutil.rmtree(titles)
    call("--run", run, "--k", 5, "--out", tmp_path / "out", "--cross-fit", 2)
    assert np.load(tmp_path / "out" / "train_candidates.npy").shape == (len(tiny.train), 5)


@pytest.mark.parametrize("folds", [-1, 0, 1, 10_000])
def test_impossible_folds_are_refused(trained: Path, tmp_path, refused, folds):
    assert f"--cross-fit {folds}: 2 to " in refused(
        main, "--run", trained, "--k", 5, "--out", tmp_path / "out", "--cross-fit", folds
    )
    assert not list(tmp_path.iterdir())


def test_runs_without_settings_are_refused(tiny: SessionDataset, tiny_intents: Path, trained: Path, tmp_path, refused):
    imported, fused = tmp_path / "imported", tmp_path / "fused"
    shutil.copytree(trained, imported)
    (imported / "results.json").unlink()
    flags = ("--k", 5, "--out", tmp_path / "out", "--cross-fit", 2)
    assert "not a finished run of `train`" in refused(main, "--run", imported, *flags)
    inputs = ("--backbone", "srgnn", "--dataset", tiny.path, "--intents", tiny_intents)
    train([str(word) for word in (*inputs, "--out", fused, *SMALL, "--epochs", 1)])
    assert "a fused run" in refused(main, "--run", fused, *flags)
    assert not (tmp_path / "out").exists()
