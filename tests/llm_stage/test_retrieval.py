import dataclasses

import numpy as np
import pytest

from dmsrec_jax.artifacts import read_candidates
from dmsrec_jax.errors import InputError
from llm_stage.config import RunConfig
from llm_stage.engines.retrieval import Retrieval, build
from llm_stage.questions import row_space
from tests.llm_stage.fakes import HashEncoder


@pytest.fixture
def engine(tiny, candidates, monkeypatch, tmp_path) -> Retrieval:
    monkeypatch.setattr(HashEncoder, "identity", {"encoder": "hash"}, raising=False)
    monkeypatch.setattr("llm_stage.engines.retrieval.load_encoder", lambda name, pooling: HashEncoder())
    return build(RunConfig(dataset=tiny.path, candidates=candidates, engine="retrieval", out=tmp_path), tiny)


def test_picks_are_the_candidates_closest_to_the_mean(engine, tiny, candidates):
    """Against one session at a time, in float64."""
    space = row_space(tiny, read_candidates(candidates, tiny))
    answers = engine.answer(space.questions(space.order))
    encoder = HashEncoder()
    full = 0
    for row, answer in zip(space.order, answers, strict=True):
        session = [tiny.titles[item] for item in space.sessions[row] if tiny.titles[item]]
        mean = np.mean([unit(encoder, title) for title in session], axis=0)
        titled = [item for item in space.candidates[row].tolist() if tiny.titles[item]]
        cosine = {item: unit(encoder, tiny.titles[item]) @ mean for item in titled}
        assert answer.picks == tuple(sorted(titled, key=lambda item: -cosine[item])[:5])
        full += len(titled) == 6
    assert 0 < full < len(answers), "no candidate without a title was met"


def unit(encoder, title):
    vector = encoder.encode([title])[0].astype(np.float64)
    return vector / np.linalg.norm(vector)


def test_a_session_without_titles_names_nothing(engine, tiny, candidates):
    space = row_space(tiny, read_candidates(candidates, tiny))
    questions = space.questions(space.order[:2])
    untitled = tiny.titles.index("", 1)
    questions.sessions.items[: questions.sessions.offsets[1]] = untitled
    first, second = engine.answer(questions)
    assert first.picks == ()
    assert len(second.picks) == 5


def test_it_says_that_it_is_no_llm(engine, tiny, candidates):
    assert engine.label == "no LLM (retrieval)"
    assert engine.identity["engine"] == "retrieval"
    space = row_space(tiny, read_candidates(candidates, tiny))
    assert engine.preview(space.questions(space.order[:2])) == []


def test_titles_are_needed(tiny, candidates, tmp_path):
    files = {name: digest for name, digest in tiny.meta["files"].items() if name != "titles.json"}
    without = dataclasses.replace(tiny, meta=tiny.meta | {"files": files})
    with pytest.raises(InputError, match="has no titles"):
        build(RunConfig(dataset=tiny.path, candidates=candidates, engine="retrieval", out=tmp_path), without)
