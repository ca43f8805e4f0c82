"""Runs with intents and with encoded titles, from the command to the served model."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from dmsrec_jax import candidates
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.metrics import summarise
from dmsrec_jax.recommend import Recommender
from dmsrec_jax.runs import load_run
from dmsrec_jax.scoring import Scorer
from dmsrec_jax.train import main
from tests.conftest import SMALL, write_tiny, write_tiny_intents, write_tiny_titles

FUSED = ("--intent-dropout", 0.2, "--semantic-dropout", 0.1, "--align", "directau")


def call(*argv: object) -> None:
    main([str(word) for word in argv])


@pytest.fixture(scope="module")
def fused(tiny: SessionDataset, tiny_intents: Path, tiny_titles: Path, tmp_path_factory) -> Path:
    """An SR-GNN with intents and titles."""
    run = tmp_path_factory.mktemp("runs") / "fused"
    inputs = ("--dataset", tiny.path, "--intents", tiny_intents, "--item-text", tiny_titles)
    call("--backbone", "srgnn", *inputs, "--out", run, *SMALL, *FUSED, "--score", "cosine")
    return run


def test_the_saved_model_gives_the_saved_ranks(fused: Path, tiny: SessionDataset, tiny_intents: Path):
    results, ranks = json.loads((fused / "results.json").read_text()), np.load(fused / "ranks.npy")
    run = load_run(fused)
    np.testing.assert_array_equal(run.score_test(), ranks)
    assert results["test"] == summarise(ranks)
    assert results["intents"] == {"path": str(tiny_intents.absolute()), "provenance": {"engine": "test"}}
    without = Scorer(run.program, tiny.test, run.settings.n_positions).ranks(run.params)
    assert results["test_no_intent"] == summarise(without)
    assert (without != ranks).any()


def test_resumed_equals_uninterrupted(fused: Path, tmp_path):
    """After the first epoch, with dropout of intents and of their vectors."""
    again = tmp_path / "again"
    shutil.copytree(fused, again)
    for done in (again / "results.json", again / "ranks.npy", again / "model.json"):
        done.unlink()
    shutil.rmtree(again / "model")
    shutil.rmtree(again / "checkpoints" / "2")
    call("--config", fused / "config.yaml", "--out", again, "--resume")
    np.testing.assert_array_equal(np.load(again / "ranks.npy"), np.load(fused / "ranks.npy"))
    one, two = (nnx.to_pure_dict(load_run(path).params) for path in (fused, again))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_other_intents_do_not_resume(fused: Path, tiny: SessionDataset, tmp_path, refused):
    again = tmp_path / "again"
    shutil.copytree(fused, again)
    other = write_tiny_intents(tmp_path / "other", tiny, seed=8)
    flags = ("--config", fused / "config.yaml", "--out", again, "--resume")
    assert "began on another --intents than" in refused(main, *flags, "--intents", other), "finished or not"
    (again / "results.json").unlink()
    assert "began on another --intents than" in refused(main, *flags, "--intents", other)
    assert "--align directau, not kl" in refused(main, *flags, "--align", "kl")


def test_candidates_need_the_intents_where_they_are_now(
    fused: Path, tiny: SessionDataset, tiny_intents: Path, tmp_path, refused
):
    moved = tmp_path / "moved"
    shutil.copytree(fused, moved)
    description = json.loads((moved / "model.json").read_text())
    (moved / "model.json").write_text(json.dumps(description | {"intents": str(tmp_path / "gone")}))
    flags = ("--run", moved, "--k", 5, "--out", tmp_path / "found")
    assert "gone" in refused(candidates.main, *flags)
    other = write_tiny_intents(tmp_path / "other", tiny, seed=8)
    assert "not the intents" in refused(candidates.main, *flags, "--intents", other)
    assert not (tmp_path / "found").exists()
    for run, more in ((moved, ("--intents", tiny_intents)), (fused, ())):
        out = tmp_path / f"of-{run.name}"
        candidates.main([str(word) for word in ("--run", run, "--k", 5, "--out", out, *more)])
    one, two = (np.load(tmp_path / f"of-{name}" / "test_candidates.npy") for name in ("moved", "fused"))
    np.testing.assert_array_equal(one, two)


def test_a_new_session_is_served_without_intents(fused: Path, tiny: SessionDataset):
    run = load_run(fused)
    scorer = Scorer(run.program, tiny.test, run.settings.n_positions)
    due = scorer.top(run.params, 5, exclude_seen=True, progress=lambda _: None)
    rows = [tiny.test[i].tolist() for i in range(len(tiny.test))]
    items, scores = Recommender.load(fused).recommend(rows, k=5)
    assert np.isfinite(scores).all()
    assert (items == due).mean() > 0.99, "but for scores that agree to rounding"


def test_items_with_the_same_title_are_neighbours(fused: Path, tiny_titles: Path):
    run = load_run(fused)
    model = nnx.merge(run.program.graphdef, run.params, run.program.constants)
    assert model.item_text.dtype == np.float16
    by_title = np.asarray(model.item_text[...].astype(np.float32) @ model.title_map[...])
    np.testing.assert_array_equal(by_title[-2], by_title[-3])
    assert (by_title[[0, -1]] == 0).all(), "an item without a title is its id alone"
    np.testing.assert_allclose(np.linalg.norm(model.item_vectors(), axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("backbone", ["srgnn", "gcegnn", "msgifsr"])
def test_released_semantics(backbone, tiny, tiny_intents, tmp_path):
    flags = ("--backbone", backbone, "--dataset", tiny.path, *SMALL, "--epochs", 1)
    call(*flags, "--out", tmp_path / "released", "--intents", tiny_intents, "--semantics", "released")
    assert load_run(tmp_path / "released").settings.semantics == "released"


def test_titles_alone(tiny, tiny_titles, tmp_path):
    flags = ("--backbone", "gcegnn", "--dataset", tiny.path, *SMALL, "--epochs", 1)
    call(*flags, "--out", tmp_path / "run", "--item-text", tiny_titles)
    np.testing.assert_array_equal(load_run(tmp_path / "run").score_test(), np.load(tmp_path / "run" / "ranks.npy"))
    assert "test_no_intent" not in json.loads((tmp_path / "run" / "results.json").read_text())


@pytest.mark.parametrize("backbone", ["attenmixer", "dhcn", "miasrec"])
def test_backbones_without_a_released_fusion_fuse_as_in_the_paper(
    backbone, tiny, tiny_intents, tiny_titles, tmp_path, refused
):
    flags = ("--backbone", backbone, "--dataset", tiny.path, *SMALL, "--epochs", 1, "--intents", tiny_intents)
    released = (*flags, "--out", tmp_path / "released", "--semantics", "released")
    assert f"--semantics released: the released code has no fused {backbone}" in refused(main, *released)
    call(*flags, "--out", tmp_path / "run", "--item-text", tiny_titles)
    ranks = np.load(tmp_path / "run" / "ranks.npy")
    assert ranks.min() >= 1
    np.testing.assert_array_equal(load_run(tmp_path / "run").score_test(), ranks)


def test_bad_flags_and_foreign_folders(tiny: SessionDataset, tiny_intents, tmp_path, refused):
    flags = ("--backbone", "srgnn", "--dataset", tiny.path, "--out", tmp_path / "run", *SMALL)
    assert "--align infonce: needs --intents" in refused(main, *flags, "--align", "infonce")
    assert "--ablation no-latent: needs --intents" in refused(main, *flags, "--ablation", "no-latent")
    fusing = (*flags, "--intents", tiny_intents)
    assert "--intent-dropout 1.0: at least 0 and below 0.999" in refused(main, *fusing, "--intent-dropout", 1)
    assert "--align-weight -1.0" in refused(main, *fusing, "--align-weight", -1)
    assert "nowhere" in refused(main, *flags, "--intents", tmp_path / "nowhere")
    other = write_tiny(tmp_path / "other", seed=9)
    foreign = write_tiny_intents(tmp_path / "foreign", other)
    assert f"{foreign}: made for another dataset" in refused(main, *flags, "--intents", foreign)
    titles = write_tiny_titles(tmp_path / "titles", other)
    assert f"{titles}: made for another dataset" in refused(main, *flags, "--item-text", titles)
    assert not (tmp_path / "run").exists()


def test_intents_of_another_width_are_refused(fused: Path, tiny: SessionDataset, tmp_path, refused):
    wide = write_tiny_intents(tmp_path / "wide", tiny, d_text=13)
    error = refused(candidates.main, "--run", fused, "--k", 5, "--out", tmp_path / "found", "--intents", wide)
    assert "vectors of width 13" in error
