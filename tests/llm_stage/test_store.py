import errno
import os
import zlib
from pathlib import Path

import pytest

from dmsrec_jax.errors import InputError
from llm_stage import store as module
from llm_stage.engines.base import Answer
from llm_stage.store import AnswerStore, read_answers

IDENTITY = {"engine": {"model": "m", "decode": "free"}, "dataset": "abc"}


def answer(row: int) -> Answer:
    return Answer((row + 1, row + 2), f"Café {row}; \u2028 \r\n 'x'", row % 2, 0, 100, 40, 7)


def fill(folder, rows, size=2) -> None:
    with AnswerStore(folder, IDENTITY) as store:
        for first in range(0, len(rows), size):
            batch = rows[first : first + size]
            store.append(batch, [answer(row) for row in batch])


def test_what_is_appended_is_read_in_order_by_anyone_later(tmp_path):
    rows = [5, 3, 8, 1, 0]
    fill(tmp_path, rows)
    with AnswerStore(tmp_path, IDENTITY) as store:
        assert list(store) == [(row, answer(row)) for row in rows]
        assert len(store) == 5
        assert 8 in store
        assert 2 not in store
    identity, found = read_answers(tmp_path)
    assert identity == IDENTITY
    assert dict(found) == {row: answer(row) for row in rows}


@pytest.mark.parametrize("lock", [True, False])
def test_answers_are_read_from_a_disk_that_takes_no_writing(tmp_path, monkeypatch, lock):
    fill(tmp_path, [0, 1])
    if not lock:
        (tmp_path / "lock").unlink()
    inner = Path.open

    def read_only(self, mode="r", *args, **words):
        if set(mode) & set("wax+"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        return inner(self, mode, *args, **words)

    monkeypatch.setattr(Path, "open", read_only)
    assert dict(read_answers(tmp_path)[1]) == {row: answer(row) for row in (0, 1)}


def test_answers_from_before_there_was_a_field_are_read(tmp_path):
    line = b'{"row": 4, "picks": [1, 2], "text": "[1]", "invalid": 0, "duplicates": 0, "prompt_tokens": 9, '
    line += b'"cached_tokens": 0, "output_tokens": 3}\n'
    fill(tmp_path, [])
    (tmp_path / "00000.jsonl").write_bytes(line)
    (tmp_path / "index").write_bytes(module._Batch(0, 0, len(line), 1, zlib.crc32(line)).line())
    assert dict(read_answers(tmp_path)[1]) == {4: Answer((1, 2), "[1]", 0, 0, 9, 0, 3)}


def test_a_finished_row_is_never_answered_again(tmp_path):
    fill(tmp_path, [0, 1])
    before = (tmp_path / "00000.jsonl").read_bytes()
    with AnswerStore(tmp_path, IDENTITY) as store, pytest.raises(ValueError, match="row 1 is answered already"):
        store.append([2, 1], [answer(2), answer(1)])
    assert (tmp_path / "00000.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["index", "00000.jsonl"])
def test_a_torn_end_is_cut_off_wherever_it_tears(tmp_path, name):
    """The last batch alone is lost; going on gives the bytes of a run that was never torn."""
    whole = tmp_path / "whole"
    fill(whole, list(range(6)))
    untorn = {file: (whole / file).read_bytes() for file in ("index", "00000.jsonl")}
    fill(tmp_path / "first", list(range(4)))
    kept = len((tmp_path / "first" / name).read_bytes())
    for size in range(kept, len(untorn[name]), 1 if name == "index" else 11):
        torn = tmp_path / f"torn-{size}"
        fill(torn, list(range(6)))
        (torn / name).write_bytes(untorn[name][:size])
        with AnswerStore(torn, IDENTITY) as store:
            assert [row for row, _ in store] == [0, 1, 2, 3]
            store.append([4, 5], [answer(4), answer(5)])
        assert {file: (torn / file).read_bytes() for file in untorn} == untorn


def test_answers_without_an_index_line_do_not_count(tmp_path):
    fill(tmp_path, [0, 1])
    before = (tmp_path / "00000.jsonl").read_bytes()
    with (tmp_path / "00000.jsonl").open("ab") as file:
        file.write(b'{"row": 7, "picks": [1]}\n{"ro')
    with AnswerStore(tmp_path, IDENTITY) as store:
        assert 7 not in store
    assert (tmp_path / "00000.jsonl").read_bytes() == before


@pytest.mark.parametrize(("name", "place"), [("index", 3), ("00000.jsonl", 12)])
def test_damage_that_no_kill_makes_is_an_error(tmp_path, name, place):
    fill(tmp_path, list(range(6)))
    data = bytearray((tmp_path / name).read_bytes())
    data[place] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match="line 1"):
        AnswerStore(tmp_path, IDENTITY)
    with pytest.raises(InputError, match="line 1"):
        read_answers(tmp_path)


def test_files_are_rolled_over(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FILE_BYTES", 300)
    fill(tmp_path, list(range(10)))
    assert len(list(tmp_path.glob("*.jsonl"))) > 2
    with AnswerStore(tmp_path, IDENTITY) as store:
        assert [row for row, _ in store] == list(range(10))
    (tmp_path / "00009.jsonl").write_bytes(b"torn before its first index line")
    with AnswerStore(tmp_path, IDENTITY) as store:
        assert len(store) == 10
    assert (tmp_path / "00009.jsonl").read_bytes() == b""


def test_other_files_are_left_alone(tmp_path):
    fill(tmp_path, [0])
    (tmp_path / "hello.jsonl").write_text("mine")
    with AnswerStore(tmp_path, IDENTITY) as store:
        assert list(store) == [(0, answer(0))]
    assert (tmp_path / "hello.jsonl").read_text() == "mine"


def test_another_identity_is_refused_and_the_key_named(tmp_path):
    fill(tmp_path, [0])
    with pytest.raises(InputError, match=r'engine\.model "m", not "other"'):
        AnswerStore(tmp_path, IDENTITY | {"engine": {"model": "other", "decode": "free"}})
    with pytest.raises(InputError, match='shard null, not "1/2"'):
        AnswerStore(tmp_path, IDENTITY | {"shard": "1/2"})
    (tmp_path / "identity.json").unlink()
    with pytest.raises(InputError, match=r"identity\.json: missing"):
        AnswerStore(tmp_path, IDENTITY)


def test_a_folder_without_answers_is_bound_to_nothing(tmp_path):
    """As after a mistyped --model, to which the endpoint said 404."""
    other = IDENTITY | {"engine": {"model": "mistyped", "decode": "free"}}
    AnswerStore(tmp_path, other).__exit__(None, None, None)
    fill(tmp_path, [0])
    assert read_answers(tmp_path)[0] == IDENTITY
    with pytest.raises(InputError, match=r'engine\.model "m", not "mistyped"'):
        AnswerStore(tmp_path, other)
    (tmp_path / "index").write_bytes((tmp_path / "index").read_bytes()[:-3])  # a kill tore the only line
    with pytest.raises(InputError, match=r"engine\.model"):
        AnswerStore(tmp_path, other)
    AnswerStore(tmp_path, IDENTITY).__exit__(None, None, None)
    AnswerStore(tmp_path, other).__exit__(None, None, None)
    assert read_answers(tmp_path)[0] == other


def test_one_process_writes_at_a_time(tmp_path):
    with AnswerStore(tmp_path, IDENTITY):
        for attempt in (lambda: AnswerStore(tmp_path, IDENTITY), lambda: read_answers(tmp_path)):
            with pytest.raises(InputError, match="another process"):
                attempt()
    AnswerStore(tmp_path, IDENTITY).__exit__(None, None, None)


@pytest.mark.parametrize("call", [0, 1])
def test_a_full_disk_loses_the_batch_alone(tmp_path, monkeypatch, call):
    """No room for the answers (0), or for their index line (1)."""
    fill(tmp_path, [0, 1])
    calls = []

    def no_room(handle):
        calls.append(handle)
        if len(calls) == call + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with AnswerStore(tmp_path, IDENTITY) as store:
        with monkeypatch.context() as patched:
            patched.setattr(module.os, "fsync", no_room)
            with pytest.raises(InputError, match="No space left on device"):
                store.append([2, 3], [answer(2), answer(3)])
        assert len(store) == 2
        store.append([2, 3], [answer(2), answer(3)])
    fill(tmp_path / "whole", [0, 1, 2, 3])
    assert (tmp_path / "index").read_bytes() == (tmp_path / "whole/index").read_bytes()
    assert (tmp_path / "00000.jsonl").read_bytes() == (tmp_path / "whole/00000.jsonl").read_bytes()


def test_half_a_surrogate_pair_is_stored(tmp_path):
    with AnswerStore(tmp_path, IDENTITY) as store:
        store.append([0], [Answer((1,), "a\ud83d")])
        assert dict(store)[0].text == "a?"
