import io
import json

import numpy as np
import pytest
from rich.console import Console

from dmsrec_jax.data import Sessions
from llm_stage.engines.base import Answer
from llm_stage.intents import classify, gather, spread
from llm_stage.questions import RowSpace
from llm_stage.report import print_report, summarise, write_figure

TITLES = ["", "a", "b", "c", "d", ""]


@pytest.fixture
def report():
    """Two training rows that ask the same, one that is answered with nothing, and one test row."""
    sessions = Sessions(np.array([1, 2, 1, 2, 3, 4], np.int32), np.array([0, 2, 4, 5, 6]))
    space = RowSpace(
        sessions,
        targets=np.array([3, 4, 1, 2], np.int32),
        candidates=np.array([[1, 3], [1, 3], [2, 4], [2, 5]], np.int32),
        n_train=3,
        order=np.array([0, 2, 3]),
        asked_by=np.array([0, 0, 2, 3]),
    )
    answers = gather(
        [
            (0, Answer((1, 3), "…", invalid=2, prompt_tokens=100, cached_tokens=60, output_tokens=9)),
            (2, Answer((), "?", invalid=1, prompt_tokens=100, cached_tokens=90, output_tokens=1, refused=1)),
            (3, Answer((2, 5), "…", duplicates=3, prompt_tokens=50, cached_tokens=50, output_tokens=2)),
        ]
    )
    picks = spread(answers.picks, np.searchsorted(answers.rows, space.asked_by))
    return summarise(answers, classify(picks, space, TITLES, "session"), picks, space, "no LLM (retrieval)")


def test_the_numbers_are_those_counted_by_hand(report):
    assert {key: report[key] for key in ("sessions", "questions", "intents", "valid", "invalid", "duplicates")} == {
        "sessions": 4,
        "questions": 3,
        "intents": 3,
        "valid": 4,
        "invalid": 3,
        "duplicates": 3,
    }
    assert (report["prompt_tokens"], report["cached_tokens"], report["output_tokens"]) == (250, 200, 12)
    assert report["cached_share"] == 0.8
    assert report["without_title"] == report["refused"] == 1
    train, test = report["parts"]["train"], report["parts"]["test"]
    assert train == {
        "sessions": 3,
        "empty": 1,
        "explicit_per_session": 2 / 3,
        "latent_per_session": 2 / 3,
        "no_explicit": 1 / 3,
        "no_latent": 1 / 3,
        "neither": 1 / 3,
        "sessions_by_explicit": [1, 2],
        "sessions_by_latent": [1, 2],
        "target_among_intents": 1 / 3,
        "target_among_candidates": 1 / 3,
    }
    assert test["target_among_intents"] == test["target_among_candidates"] == 1.0
    assert (test["explicit_per_session"], test["latent_per_session"]) == (0.0, 1.0)
    json.dumps(report)


def printed(report):
    console = Console(width=120, record=True, file=io.StringIO())
    print_report(report, console)
    return console.export_text()


def test_what_is_printed_says_who_answered_and_where_train_is_ahead(report):
    text = printed(report)
    assert "no LLM (retrieval)" in text
    assert "1 items named have no title" in text
    assert "1 questions were refused by a content filter" in text
    assert "80.0 % cached" in text
    assert "trust intents" not in text
    report["parts"]["train"]["target_among_candidates"] = 1.3
    assert "target among candidates: train 130.00 %, test 100.00 %: a fused model learns to trust" in printed(report)


def test_the_figure_is_a_picture_and_the_same_each_time(report, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    for name in ("a.png", "b.png"):
        write_figure(tmp_path / name, report, "tiny")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
