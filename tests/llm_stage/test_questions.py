import numpy as np
import pytest

from dmsrec_jax.artifacts import read_candidates
from dmsrec_jax.errors import InputError
from llm_stage.questions import row_space, shard_of


@pytest.fixture(scope="module")
def space(tiny, candidates):
    return row_space(tiny, read_candidates(candidates, tiny))


def test_rows_are_those_of_both_parts(space, tiny):
    assert len(space.sessions) == len(tiny.train) + len(tiny.test)
    for row in (0, 7, len(tiny.train) - 1):
        np.testing.assert_array_equal(space.sessions[row], tiny.train[row])
    np.testing.assert_array_equal(space.sessions[space.n_train + 3], tiny.test[3])
    np.testing.assert_array_equal(space.targets[space.n_train :], tiny.test.targets)


def test_equal_questions_are_asked_once_by_their_first_row(space):
    def key(row):
        return (*space.sessions[row], -1, *space.candidates[row])

    first = {}
    for row in range(len(space.sessions)):
        first.setdefault(key(row), row)
    assert sorted(space.order.tolist()) == sorted(first.values())
    assert len(first) < len(space.sessions), "the data set has no equal questions, so nothing is tested"
    assert [first[key(row)] for row in range(len(space.sessions))] == space.asked_by.tolist()


def test_prefixes_of_a_session_follow_each_other(space):
    sessions = [space.sessions[row].tolist() for row in space.order]
    assert sessions == sorted(sessions)


def test_questions_hold_the_rows_asked_for(space):
    rows = space.order[5:9]
    questions = space.questions(rows)
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(questions.sessions[place], space.sessions[row])
        np.testing.assert_array_equal(questions.candidates[place], space.candidates[row])


@pytest.mark.parametrize("n", [1, 3, 7])
def test_shards_are_the_whole(space, n):
    parts = [shard_of(space.order, f"{i}/{n}") for i in range(1, n + 1)]
    np.testing.assert_array_equal(np.concatenate(parts), space.order)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("shard", ["", "1", "0/2", "3/2", "1/0", "a/b", "-1/2", "1/2/3", "1/9999"])
def test_other_shards_are_refused(space, shard):
    with pytest.raises(InputError, match="--shard"):
        shard_of(space.order, shard)
