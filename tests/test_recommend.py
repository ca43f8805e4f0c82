import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import dmsrec_jax
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import write_json
from dmsrec_jax.metrics import METRICS, VIEWS
from dmsrec_jax.recommend import Recommender, main, split
from dmsrec_jax.runs import load_run
from dmsrec_jax.scoring import Scorer
from tests.conftest import N_ITEMS, random_sessions


@pytest.fixture(scope="module")
def recommender(trained: Path) -> Recommender:
    return dmsrec_jax.Recommender.load(trained)


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_equals_the_scorer(tiny: SessionDataset, trained: Path, recommender, exclude_seen):
    run = load_run(trained)
    scorer = Scorer(run.program, tiny.test, run.settings.n_positions)
    due = scorer.top(run.params, 10, exclude_seen=exclude_seen, progress=lambda _: None)
    rows = [tiny.test[i].tolist() for i in range(len(tiny.test))]
    items, scores = recommender.recommend(rows, k=10, exclude_seen=exclude_seen)
    assert items.dtype == np.int32
    assert scores.dtype == np.float32
    assert (np.diff(scores, axis=1) <= 0).all()
    assert (items == due).mean() > 0.99, "but for scores that agree to rounding"


def test_batches_give_what_single_sessions_give(recommender):
    sessions = random_sessions(7, 300)  # more than one device call
    rows = [sessions[i].tolist() for i in range(len(sessions))]
    items, scores = recommender.recommend(rows, k=5)
    for i in (0, 17, 255, 256, 299):
        alone, alone_scores = recommender.recommend([rows[i]], k=5)
        np.testing.assert_allclose(scores[i], alone_scores[0], atol=1e-5)
        assert set(alone[0].tolist()) == set(items[i].tolist())
    none, no_scores = recommender.recommend([], k=5)
    assert none.shape == no_scores.shape == (0, 5)


def test_titles_raw_ids_and_item_ids_mean_the_same(recommender):
    due = recommender.recommend([[3, 5]], k=4)
    for row in (["Film 3", "film 5"], ["raw-3", "raw-5"], [3, "FILM 5"], [np.int32(3), np.int64(5)]):
        for one, other in zip(due, recommender.recommend([row], k=4), strict=True):
            np.testing.assert_array_equal(one, other)


def test_sessions_longer_than_any_trained_on(trained: Path, recommender):
    """The model reads the last clicks only; all clicks are left out."""
    longest = load_run(trained).settings.n_positions
    session = [*range(1, 16), *range(1, 4)]
    items, scores = recommender.recommend([session, [7]], k=10, exclude_seen=False)
    read, read_scores = recommender.recommend([session[-longest:], [7]], k=10, exclude_seen=False)
    np.testing.assert_array_equal(items, read)
    np.testing.assert_allclose(scores, read_scores, atol=1e-6)
    everything, _ = recommender.recommend([session], k=N_ITEMS, exclude_seen=False)
    unseen, unseen_scores = recommender.recommend([session, [7]], k=15, exclude_seen=True)
    assert unseen[0].tolist() == [item for item in everything[0].tolist() if item not in session][:15]
    assert np.isfinite(unseen_scores).all()
    assert 7 not in unseen[1]


def test_titles_match_whatever_their_outer_space(trained: Path):
    recommender = Recommender.load(trained)
    recommender.titles = ["", " Film 1 ", "  ", *recommender.titles[3:]]
    recommender.titles[4] = "\u00c7a"
    names = "film 1", " Film 1", " FILM 3 ", "C\u0327A"
    assert [recommender.item(name) for name in names] == [1, 1, 3, 4], "the last of two characters or one"
    with pytest.raises(InputError, match="no item"):
        recommender.item(" ")


@pytest.mark.parametrize(
    ("session", "names"),
    [
        ("a; b", ["a; b"]),
        ("b ;a; b; a", ["b", "a; b", "a"]),
        ("a; b; c;a;b", ["a; b; c", "a", "b"]),
        ("d;; raw-5;", ["d;", "raw-5"]),
        (" ; d ; Toy; Story;", ["d", "Toy", "Story"]),
        ("twin; twin; a", ["twin; twin", "a"]),
    ],
)
def test_names_may_hold_what_separates_them(trained: Path, session, names):
    recommender = Recommender.load(trained)
    named = ["A", "b", "a; b", "A; b; c", "d;", "d", "Twin; twin", "twin; Twin"]
    recommender.titles = ["", *named, *recommender.titles[1 + len(named) :]]
    assert split(session, recommender) == names


def test_a_long_session_takes_a_few_look_ups_a_click(trained: Path, monkeypatch):
    recommender = Recommender.load(trained)
    recommender.titles = ["", "a; b; c", *recommender.titles[2:]]
    asked, named = [], recommender.named
    monkeypatch.setattr(recommender, "named", lambda name: asked.append(name) or named(name))
    assert split("raw-5;a; b; c;" * 50, recommender) == ["raw-5", "a; b; c"] * 50
    assert len(asked) <= 3 * 200


@pytest.mark.parametrize(
    ("click", "complaint"),
    [
        ("Toy Story", "'Toy Story': no item of tiny"),
        ("", "no item"),
        ("twin", "several items have this title: ids raw-28, raw-29"),
        (0, "item 0: ids run from 1 to 30"),
        (31, "item 31"),
        (-1, "item -1"),
    ],
)
def test_unknown_clicks_are_named(recommender, click, complaint):
    with pytest.raises(InputError, match=complaint):
        recommender.recommend([[1], [2, click]])


def test_empty_sessions_and_impossible_sizes(recommender):
    with pytest.raises(InputError, match="session 1: has no clicks"):
        recommender.recommend([[1], []])
    for k, exclude_seen in ((0, False), (N_ITEMS + 1, False), (N_ITEMS - 1, True)):
        with pytest.raises(InputError, match=f"k = {k}"):
            recommender.recommend([[1, 2]], k=k, exclude_seen=exclude_seen)
    assert recommender.recommend([[1, 2]], k=N_ITEMS - 2)[0].shape == (1, N_ITEMS - 2)


def test_command_prints_titles_and_scores(trained: Path, capsys):
    main(["--run", str(trained), "--session", "Film 3; raw-5", "--k", "3"])
    out = capsys.readouterr().out
    items, scores = Recommender.load(trained).recommend([[3, 5]], k=3)
    for item, score in zip(items[0].tolist(), scores[0].tolist(), strict=True):
        assert f"raw-{item}" in out
        assert f"{score:.3f}" in out


def test_command_prints_no_control_characters(trained: Path, monkeypatch, capsys):
    load = Recommender.load

    def with_odd_titles(*folders):
        recommender = load(*folders)
        recommender.titles = ["a\x1b[31mb\nc\u2028d"] * len(recommender.item_ids)
        return recommender

    monkeypatch.setattr(Recommender, "load", with_odd_titles)
    main(["--run", str(trained), "--session", "raw-5", "--k", "3"])
    assert capsys.readouterr().out.count("a [31mb c d") == 3


@pytest.mark.parametrize(
    ("session", "complaint"),
    [
        ("Film 1; Toy Story; Jumanji", "'Toy Story'"),
        ("Film 1; Toy Story; Jumanji", "'Jumanji'"),
        ("Twin", "several items"),
        (" ; ;", "--session"),
        ("31", "'31'"),
    ],
)
def test_command_names_what_it_does_not_know(trained: Path, refused, session, complaint):
    assert complaint in refused(main, "--run", trained, "--session", session)


def test_command_tells_what_rankings_without_intents_are_worth(trained: Path, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "fused")
    config = yaml.safe_load((run / "config.yaml").read_text())
    results = json.loads((run / "results.json").read_text())
    weak = {view: dict.fromkeys(METRICS, 1.25) for view in VIEWS}
    write_json(run / "results.json", results | {"test_no_intent": weak})
    for changed, note in (({}, False), ({"intents": "x"}, True), ({"intents": "x", "intent_dropout": 0.3}, False)):
        (run / "config.yaml").write_text(yaml.safe_dump(config | changed))
        main(["--run", str(run), "--session", "Film 3", "--k", "3"])
        error = capsys.readouterr().err
        assert ("trained without --intent-dropout" in error) == note
        assert error.count("\n") == note
        figures = f"HR@20 1.25 on the test set, {results['test']['exclude_seen']['hr@20']:.2f} with them"
        assert (figures in error) == note


def test_command_refuses_impossible_sizes(trained: Path, refused):
    assert "k = 30" in refused(main, "--run", trained, "--session", "Film 1", "--k", 30)
