import numpy as np
import pytest

from dmsrec_jax.data import Sessions
from llm_stage.engines.base import Answer
from llm_stage.intents import classify, gather, part_of, spread
from llm_stage.questions import RowSpace

TITLES = ["", "Heat", "Alien", "Heat", "", "Ran", "M", "Up"]
"""Items 1 and 3 share a title, item 4 has none."""


def lists(*rows) -> Sessions:
    flat = np.array([item for row in rows for item in row], np.int32)
    return Sessions(flat, np.append(0, np.cumsum([len(row) for row in rows])))


@pytest.fixture
def space():
    sessions = lists([3, 2], [5], [4, 6])
    candidates = np.array([[1, 5, 7], [5, 6, 7], [1, 2, 3]], np.int32)
    nothing = np.zeros(0, np.int64)
    return RowSpace(sessions, nothing, candidates, 2, nothing, nothing)


def named(lists, titles):
    bounds = zip(lists.offsets, lists.offsets[1:], strict=False)
    return [titles[lists.ids[a:b]].tolist() for a, b in bounds]


def test_explicit_is_a_title_of_the_sessions_own_items(space):
    found = classify(lists([7, 1, 5, 3], [], [4, 6, 2]), space, TITLES, "session")
    assert found.titles.tolist() == ["Alien", "Heat", "M", "Ran", "Up"]
    assert named(found.explicit, found.titles) == [["Heat"], [], ["M"]]
    assert named(found.latent, found.titles) == [["Up", "Ran"], [], ["Alien"]]
    assert found.untitled == 1


def test_by_candidates_latent_is_what_was_named_beside_them(space):
    found = classify(lists([7, 2, 3], [5], [6]), space, TITLES, "candidates")
    assert named(found.explicit, found.titles) == [["Up", "Heat"], ["Ran"], []]
    assert named(found.latent, found.titles) == [["Alien"], [], ["M"]]


@pytest.mark.parametrize("rule", ["session", "candidates"])
def test_on_random_answers_it_is_what_sets_say(rule):
    rng = np.random.default_rng(3)
    titles = ["", *(f"t{i}" if i % 7 else "" for i in rng.integers(0, 40, 60))]
    rows = [rng.choice(60, n, replace=False) + 1 for n in rng.integers(0, 6, 200)]
    sessions = [rng.integers(1, 61, n) for n in rng.integers(1, 8, 200)]
    candidates = rng.integers(1, 61, (200, 6), dtype=np.int32)
    nothing = np.zeros(0, np.int64)
    found = classify(lists(*rows), RowSpace(lists(*sessions), nothing, candidates, 0, nothing, nothing), titles, rule)
    explicit, latent = named(found.explicit, found.titles), named(found.latent, found.titles)
    assert len(explicit) == len(latent) == 200
    for row, picks in enumerate(rows):
        own = {titles[i] for i in (sessions[row] if rule == "session" else candidates[row])}
        intents = list(dict.fromkeys(titles[i] for i in picks if titles[i]))
        assert explicit[row] == [title for title in intents if title in own]
        assert latent[row] == [title for title in intents if title not in own]
    assert set(found.titles) == {title for row in (*explicit, *latent) for title in row}, "an intent nobody has"


def test_nothing_named_is_no_intent(space):
    found = classify(lists([], [4], []), space, TITLES, "session")
    assert len(found.titles) == 0
    assert found.explicit.offsets.tolist() == found.latent.offsets.tolist() == [0, 0, 0, 0]


def test_answers_are_put_in_the_order_of_their_rows_and_spread():
    answers = gather([(7, Answer((3, 1), "", 1)), (2, Answer((), "", 0, 2, 9)), (4, Answer((5,)))])
    assert answers.rows.tolist() == [2, 4, 7]
    assert [answers.picks[i].tolist() for i in range(3)] == [[], [5], [3, 1]]
    assert answers.counts["invalid"].tolist() == [0, 0, 1]
    assert answers.counts["prompt_tokens"].tolist() == [9, 0, 0]
    rows = spread(answers.picks, np.array([2, 0, 2, 1]))
    assert [rows[i].tolist() for i in range(4)] == [[3, 1], [], [3, 1], [5]]


def test_a_part_is_its_rows(space):
    found = classify(lists([7, 1], [5, 6], [2]), space, TITLES, "session")
    test = part_of(found.latent, 1, 3)
    assert named(test, found.titles) == named(found.latent, found.titles)[1:]
    assert test.offsets[0] == 0
