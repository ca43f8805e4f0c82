import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from dmsrec_jax.artifacts import read_candidates, read_intents
from dmsrec_jax.errors import InputError
from llm_stage.encode_items import main as encode_items
from llm_stage.engines.base import Answer, UnfinishedError
from llm_stage.merge import main as merge
from llm_stage.questions import row_space
from llm_stage.run import main
from tests.conftest import write_tiny
from tests.llm_stage import fakes
from tests.llm_stage.conftest import contents, write_random_candidates


@pytest.fixture
def flags(tiny, candidates):
    return ("--dataset", tiny.path, "--candidates", candidates, "--engine", "retrieval")


@pytest.fixture
def call(flags, faked):
    return lambda *argv: main([str(word) for word in (*flags, *argv)])


@pytest.fixture
def whole(call, tmp_path):
    """A finished run."""
    call("--out", tmp_path / "whole")
    return tmp_path / "whole"


def test_the_intents_are_what_the_engine_named(whole, tiny, candidates, faked):
    """Against the engine asked row by row, with plain Python sets."""
    intents = read_intents(whole, tiny)
    space = row_space(tiny, read_candidates(candidates, tiny))
    engine = faked.__new__(faked)
    for part, rows, shift in ((intents.train, tiny.train, 0), (intents.test, tiny.test, space.n_train)):
        np.testing.assert_array_equal(part.candidates, space.candidates[shift : shift + len(rows)])
        for row in range(len(rows)):
            picks = engine.name(space.questions(np.array([shift + row])), 0).picks
            named = list(dict.fromkeys(tiny.titles[item] for item in picks if tiny.titles[item]))
            own = {tiny.titles[item] for item in rows[row]}

            def found(lists, row=row):
                return intents.titles[lists.ids[lists.offsets[row] : lists.offsets[row + 1]]].tolist()

            assert found(part.explicit) == [title for title in named if title in own]
            assert found(part.latent) == [title for title in named if title not in own]
    meta = json.loads((whole / "meta.json").read_text())["provenance"]
    assert meta["engine_label"] == "fake"
    assert meta["answers"]["engine"]["engine"] == "fake"
    assert (whole / "intents.png").read_bytes().startswith(b"\x89PNG")


def state(folder):
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def test_a_finished_run_is_left_alone(whole, call, faked, capsys):
    before = state(whole)
    faked.hook = staticmethod(lambda questions: pytest.fail("asked again"))
    call("--out", whole)
    assert "finished already" in capsys.readouterr().out
    assert state(whole) == before


def test_another_encoding_of_the_same_answers_asks_nothing(call, faked, tmp_path):
    out = tmp_path / "out"
    call("--out", out)
    answers = contents(out / "answers")
    faked.hook = staticmethod(lambda questions: pytest.fail("asked again"))
    call("--out", out, "--pooling", "released", "--overwrite")
    assert json.loads((out / "meta.json").read_text())["provenance"]["pooling"] == "released"
    assert contents(out / "answers") == answers


def test_an_encoder_with_other_weights_encodes_the_same_answers_anew(call, refused, flags, tmp_path, monkeypatch):
    out = tmp_path / "out"
    call("--out", out)
    answers = contents(out / "answers")
    monkeypatch.setattr(fakes.HashEncoder, "revision", "2")
    assert 'encoder_revision "1", not "2"' in refused(main, *flags, "--out", out)
    call("--out", out, "--overwrite")
    assert json.loads((out / "meta.json").read_text())["provenance"]["encoder_revision"] == "2"
    assert contents(out / "answers") == answers


def test_the_time_left_is_not_told_from_the_first_batch(call, monkeypatch, tmp_path, capsys):
    """With it a model is loaded: ten minutes here, then one batch each half a minute."""
    clock = iter([0.0, *(600.0 + 30 * n for n in range(1000))])
    monkeypatch.setattr("llm_stage.run.time", SimpleNamespace(monotonic=lambda: next(clock)))
    call("--out", tmp_path / "out", "--limit", 40, "--batch-size", 4)
    lines = [line for line in capsys.readouterr().out.splitlines() if "min left" in line]
    assert [line.split(",")[0] + line.split(",")[-1] for line in lines] == [
        f"{done} of 40 answered {(40 - done) / 8:,.0f} min left" for done in (12, 20, 28, 36)
    ]


def test_a_limit_stops_and_is_gone_on_from(whole, call, tmp_path, capsys):
    out = tmp_path / "limited"
    for _ in range(2):  # the second finds them answered
        call("--out", out, "--limit", 40)
        assert "40 of" in capsys.readouterr().out
        assert not (out / "meta.json").exists()
    call("--out", out)
    assert contents(out) == contents(whole)


def test_an_engine_that_dies_leaves_what_it_answered(whole, call, faked, refused, flags, tmp_path):
    calls = []

    def dies(questions):
        calls.append(len(questions.candidates))
        if len(calls) == 6:
            raise InputError("http://localhost:1: refused")

    faked.hook = staticmethod(dies)
    line = refused(main, *flags, "--out", tmp_path / "dead")
    assert "localhost:1: refused (20 of" in line
    assert "goes on from there" in line
    calls.clear()
    faked.hook = staticmethod(lambda questions: calls.append(len(questions.candidates)))
    call("--out", tmp_path / "dead")
    assert contents(tmp_path / "dead") == contents(whole)
    assert sum(calls) == len(list((whole / "answers/00000.jsonl").open())) - 20


def test_what_a_failed_batch_has_is_kept(whole, call, faked, refused, flags, tmp_path, monkeypatch):
    inner = faked.answer

    def fails(self, questions):
        answers = inner(self, questions)
        raise UnfinishedError("http://localhost:1: 500", {place: answers[place] for place in (3, 1)})

    with monkeypatch.context() as patched:
        patched.setattr(faked, "answer", fails)
        assert "500 (2 of" in refused(main, *flags, "--out", tmp_path / "out")
        assert "500 (4 of" in refused(main, *flags, "--out", tmp_path / "out")
        patched.setattr(faked, "name", lambda self, questions, row: Answer((999,)))
        patched.setattr(faked, "answer", fails)
        assert "fake: named (999,)" in refused(main, *flags, "--out", tmp_path / "out")
    call("--out", tmp_path / "out")
    names = {name for name in contents(whole) if not name.startswith("answers/")}  # other batches, another order
    assert {name: contents(tmp_path / "out")[name] for name in names} == {name: contents(whole)[name] for name in names}


def test_finished_rows_keep_their_answers_though_the_engine_changes_its_mind(call, faked, monkeypatch, tmp_path):
    out = tmp_path / "out"
    call("--out", out, "--limit", 30)
    before = (out / "answers/00000.jsonl").read_bytes()
    monkeypatch.setattr(faked, "name", lambda self, questions, row: Answer((int(questions.candidates[row, 0]),), "new"))
    call("--out", out)
    after = (out / "answers/00000.jsonl").read_bytes()
    assert after.startswith(before)
    assert b'"new"' not in after[: len(before)]
    assert b'"new"' in after[len(before) :]


@pytest.mark.parametrize("finished", [False, True])
def test_nothing_else_is_mixed_in(call, faked, refused, flags, tiny, tmp_path, finished):
    out = tmp_path / "out"
    call("--out", out, *(() if finished else ("--limit", 5)))
    before = contents(out)
    other = write_tiny(tmp_path / "other", seed=4)
    for change, key in (
        (("--model", "another"), "engine.model"),
        (("--max-intents", 7), "engine.limits.m"),
        (("--candidates", write_random_candidates(tmp_path / "c", tiny, seed=1)), "candidates.train"),
        (("--dataset", other.path, "--candidates", write_random_candidates(tmp_path / "o", other)), "dataset"),
    ):
        assert key in refused(main, *flags, "--out", out, *change)
    if finished:
        assert "pooling" in refused(main, *flags, "--out", out, "--pooling", "released")
        assert "engine.model" in refused(main, *flags, "--out", out, "--model", "another", "--overwrite")
    else:
        assert "shard" in refused(main, *flags, "--out", out, "--shard", "1/2")
    assert contents(out) == before


@pytest.mark.parametrize("command", [main, merge, encode_items])
def test_a_data_set_changed_in_place_is_refused(faked, refused, tiny, candidates, tmp_path, command):
    """Its hash is that of meta.json, which does not change: new titles would be mixed with the old ones' answers."""
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(tiny.path, copy)
    titles = json.loads((copy / "titles.json").read_text())
    (copy / "titles.json").write_text(json.dumps([*titles[:-1], "another"]))
    more = {main: ("--engine", "retrieval"), merge: ("--shards", tmp_path), encode_items: ()}[command]
    given = () if command is encode_items else ("--candidates", candidates)
    line = refused(command, "--dataset", copy, *given, *more, "--out", out)
    assert "titles.json: its SHA-256 is not the one in meta.json" in line
    assert not out.exists()


def test_shards_merged_are_the_single_run(whole, call, flags, tmp_path, refused):
    shards = [tmp_path / f"shard-{i}" for i in (1, 2, 3)]
    for i, shard in enumerate(shards, 1):
        call("--out", shard, "--shard", f"{i}/3")
        assert not (shard / "meta.json").exists()
    given = flags[:4]
    line = refused(merge, *given, "--out", tmp_path / "m", "--shards", *shards[:2])
    assert "answered in none" in line
    assert "answers row" in refused(merge, *given, "--out", tmp_path / "m", "--shards", *shards, shards[1])
    assert not (tmp_path / "m").exists()
    merge([str(word) for word in (*given, "--out", tmp_path / "m", "--shards", *shards)])
    names = {name for name in contents(whole) if name != "answers/index"}  # batches differ in size
    assert {name: contents(tmp_path / "m")[name] for name in names} == {name: contents(whole)[name] for name in names}
    # the merged folder is a finished run
    call("--out", tmp_path / "m")


def test_shards_of_different_models_are_not_merged(call, flags, tmp_path, refused):
    call("--out", tmp_path / "1", "--shard", "1/2")
    call("--out", tmp_path / "2", "--shard", "2/2", "--model", "another")
    line = refused(merge, *flags[:4], "--out", tmp_path / "m", "--shards", tmp_path / "1", tmp_path / "2")
    assert 'engine.model "another"' in line


@pytest.mark.parametrize("content", [[], {"shard": "1/2"}, {"label": 5}])
def test_a_foreign_identity_is_named(whole, flags, tmp_path, refused, content):
    (whole / "answers/identity.json").write_text(json.dumps(content))
    line = refused(merge, *flags[:4], "--out", tmp_path / "m", "--shards", whole)
    assert f"{whole / 'answers/identity.json'}: a " in line
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("content", [[], {}, {"provenance": "x"}])
def test_foreign_intents_are_named(whole, flags, refused, content):
    (whole / "meta.json").write_text(json.dumps(content))
    for command, more in ((main, flags[4:]), (merge, ("--shards", whole))):
        assert f"{whole / 'meta.json'}: a " in refused(command, *flags[:4], "--out", whole, *more)


def test_answers_can_be_classified_anew(whole, flags, tiny, tmp_path):
    out = tmp_path / "again"
    argv = (*flags[:4], "--out", out, "--shards", whole, "--explicit-rule", "candidates")
    merge([str(word) for word in argv])
    by_session, by_candidates = read_intents(whole, tiny).test, read_intents(out, tiny).test
    assert len(by_candidates.latent.ids) < len(by_session.latent.ids)
    assert len(by_candidates.latent.ids) + len(by_candidates.explicit.ids) == len(by_session.latent.ids) + len(
        by_session.explicit.ids
    )


def test_a_dry_run_asks_and_writes_nothing(call, faked, tmp_path, capsys):
    faked.hook = staticmethod(lambda questions: pytest.fail("asked"))
    call("--out", tmp_path / "out", "--dry-run")
    printed = capsys.readouterr().out
    assert "a prompt of 7 tokens" in printed
    assert "estimate from" in printed
    assert not (tmp_path / "out").exists()


def test_a_check_needs_no_candidates_and_writes_nothing(flags, faked, refused, tmp_path, capsys):
    faked.hook = staticmethod(lambda questions: pytest.fail("asked"))
    words = [str(word) for word in (*flags, "--candidates", tmp_path / "none", "--out", tmp_path / "out", "--check")]
    main(words)
    assert "fake, encoder bert-base-uncased: at hand" in capsys.readouterr().out
    assert "--max-intents 0" in refused(main, *words, "--max-intents", 0)
    assert not (tmp_path / "out").exists()


def test_what_the_end_needs_is_missed_at_the_beginning(faked, refused, flags, tmp_path, monkeypatch):
    faked.hook = staticmethod(lambda questions: pytest.fail("asked"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "matplotlib" in refused(main, *flags, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("answers", [[], [Answer((999,))] * 4, [Answer((1, 1))] * 4])
def test_an_engine_cannot_invent_items(faked, refused, flags, tmp_path, monkeypatch, answers):
    monkeypatch.setattr(faked, "answer", lambda self, questions: answers)
    line = refused(main, *flags, "--out", tmp_path / "out")
    assert "fake: " in line
    assert "(0 of" in line


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("--limit", 0), "--limit 0"),
        (("--max-intents", -1), "--max-intents -1"),
        (("--retries", -1), "--retries -1: at least 0"),
        (("--concurrency", 0), "--concurrency 0: at least 1"),
        (("--tensor-parallel", 0), "--tensor-parallel 0: at least 1"),
        (("--timeout", -1), "--timeout -1"),
        (("--timeout", 0), "--timeout 0"),
        (("--timeout", "nan"), "--timeout nan"),
        (("--timeout", "inf"), "--timeout inf"),
        (("--gpu-memory-utilization", 0), "--gpu-memory-utilization 0"),
        (("--gpu-memory-utilization", 2), "--gpu-memory-utilization 2"),
        (("--gpu-memory-utilization", "nan"), "--gpu-memory-utilization nan"),
        (("--shard", "1/99999999"), "--shard 1/99999999: there are "),
        (("--shard", "5/3"), "--shard 5/3"),
        (("--candidates", "nowhere"), "nowhere/candidates.json"),
        (("--dataset", "nowhere"), "nowhere/meta.json"),
        (("--out", "pyproject.toml"), "not a folder"),
    ],
)
def test_bad_flags_are_one_line(faked, refused, flags, tmp_path, argv, complaint):
    assert complaint in refused(main, *flags, "--out", tmp_path / "out", *argv)
    assert not (tmp_path / "out").exists()
