from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dmsrec_jax import candidates
from dmsrec_jax.candidates import main, most_distinct
from dmsrec_jax.data import SessionDataset, Split
from dmsrec_jax.graphs import build_graphs, pack
from dmsrec_jax.orders import batch_budget
from dmsrec_jax.runs import load_run
from dmsrec_jax.scoring import Scorer
from tests.conftest import N_ITEMS, random_sessions, write_tiny


def call(*argv: object) -> None:
    main([str(word) for word in argv])


def logits(run: Path, rows: Split) -> np.ndarray:
    """All sessions in one batch, straight through the model."""
    loaded = load_run(run)
    graphs = build_graphs(rows)
    budget = batch_budget(graphs, len(rows), 1)

    @jax.jit
    def score(graphs):
        model = nnx.merge(loaded.program.graphdef, loaded.params, loaded.program.constants)
        return model(pack(graphs, jnp.arange(len(rows)), budget))

    return np.asarray(score(jax.tree.map(jnp.asarray, graphs)))


@pytest.fixture(scope="module")
def written(trained: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("candidates") / "plain"
    call("--run", trained, "--k", 20, "--out", out)
    return out


def test_candidates_are_the_best_items(tiny: SessionDataset, trained: Path, written: Path):
    for part in ("train", "test"):
        rows: Split = getattr(tiny, part)
        found = np.load(written / f"{part}_candidates.npy")
        assert found.dtype == np.int32
        assert found.shape == (len(rows), 20)
        scores = logits(trained, rows)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :20]
        # Scores that agree to rounding may change places.
        taken, due = (np.take_along_axis(scores, ids, 1) for ids in (found, best))
        np.testing.assert_allclose(taken, due, atol=1e-5)
        assert (found == best).mean() > 0.99
        assert all(len(set(row)) == 20 for row in found.tolist())
        assert found.min() >= 1


def test_seen_items_are_left_out_on_request(tiny: SessionDataset, trained: Path, written: Path, tmp_path):
    assert max(map(most_distinct, (tiny.train, tiny.test))) == 4
    call("--run", trained, "--k", N_ITEMS - 4, "--out", tmp_path / "most", "--exclude-seen")
    for session, row in enumerate(np.load(tmp_path / "most" / "test_candidates.npy").tolist()):
        assert not {*tiny.test[session].tolist()} & {*row}
    out = tmp_path / "unseen"
    call("--run", trained, "--k", 10, "--out", out, "--exclude-seen")
    found, everything = np.load(out / "test_candidates.npy"), np.load(written / "test_candidates.npy")
    for session, (row, plain) in enumerate(zip(found.tolist(), everything.tolist(), strict=True)):
        seen = set(tiny.test[session].tolist())
        assert not seen & set(row)
        rest = [item for item in plain if item not in seen]
        assert row[: len(rest)] == rest[:10]


def test_progress_counts_every_session_once(tiny: SessionDataset, trained: Path):
    run, counted = load_run(trained), []
    Scorer(run.program, tiny.train, run.settings.n_positions).top(
        run.params, 3, exclude_seen=False, progress=counted.append
    )
    assert sum(counted) == len(tiny.train)


def test_a_second_run_needs_overwrite(trained: Path, written: Path, refused):
    before = np.load(written / "test_candidates.npy")
    assert "--overwrite" in refused(main, "--run", trained, "--k", 20, "--out", written)
    call("--run", trained, "--k", 20, "--out", written, "--overwrite")
    np.testing.assert_array_equal(np.load(written / "test_candidates.npy"), before)


@pytest.mark.parametrize(
    "flags",
    [("--k", 0), ("--k", 31), ("--k", 27, "--exclude-seen"), ("--k", "many"), ("--dataset", "nowhere")],
    ids=str,
)
def test_bad_flags_are_named(trained: Path, tmp_path, refused, flags):
    error = refused(main, "--run", trained, "--out", tmp_path / "out", *flags)
    assert str(flags[0]) in error or str(flags[1]) in error
    assert not (tmp_path / "out").exists()


def test_flags_that_can_do_nothing_are_named(trained: Path, tiny_intents: Path, tmp_path, refused, monkeypatch):
    flags = ("--run", trained, "--out", tmp_path / "out")
    assert f"--intents {tiny_intents}: {trained} is a plain model" in refused(main, *flags, "--intents", tiny_intents)
    monkeypatch.setattr(candidates, "most_distinct", lambda _: N_ITEMS)
    assert "--exclude-seen: a session holds all 30 items" in refused(main, *flags, "--k", 1, "--exclude-seen")


def test_most_distinct_counts_items_not_clicks():
    for seed in range(5):
        sessions = random_sessions(seed, 40, n_items=12, longest=20)
        due = max(len(set(sessions[i].tolist())) for i in range(len(sessions)))
        assert most_distinct(sessions) == due < sessions.lengths.max()


def test_another_dataset_is_refused(trained: Path, tmp_path, refused):
    other = write_tiny(tmp_path / "other", seed=3)
    error = refused(main, "--run", trained, "--out", tmp_path / "out", "--dataset", other.path)
    assert "not the dataset" in error


def test_a_moved_dataset_is_found_with_a_flag(tiny: SessionDataset, trained: Path, written: Path, tmp_path):
    moved = write_tiny(tmp_path / "moved")
    assert moved.hash == tiny.hash
    call("--run", trained, "--k", 20, "--out", tmp_path / "out", "--dataset", moved.path)
    np.testing.assert_array_equal(
        np.load(tmp_path / "out" / "train_candidates.npy"), np.load(written / "train_candidates.npy")
    )
