"""Samples of sessions, and the way back, on hand-made tables."""

import numpy as np
import pytest

from dmsrec_jax.data.dataset import Sessions
from dmsrec_jax.data.samples import FORMS, align, infer_chains, last_clicks, longest, prefixes, ragged, take
from dmsrec_jax.errors import InputError


def sessions(*rows):
    return Sessions(np.array([item for row in rows for item in row], np.int32), np.cumsum([0, *map(len, rows)]))


def table(split):
    return [(split[i].tolist(), int(split.targets[i]), int(split.chains[i])) for i in range(len(split))]


WHOLE = sessions([1, 2, 3], [4], [5, 6])


def test_prefixes_shortest_first():
    assert table(prefixes(WHOLE)) == [([1], 2, 0), ([1, 2], 3, 0), ([5], 6, 2)]


def test_prefixes_longest_first():
    assert table(prefixes(WHOLE, longest_first=True)) == [([1, 2], 3, 0), ([1], 2, 0), ([5], 6, 2)]


def test_prefixes_of_an_endless_session_are_refused():
    endless = Sessions(np.ones(100_000, np.int32), np.array([0, 100_000]))
    with pytest.raises(InputError, match=r"--augment-prefixes.*longest session has 100,000"):
        prefixes(endless)


def test_prefixes_hold_no_more_clicks_than_an_int32_counts(monkeypatch):
    monkeypatch.setattr("dmsrec_jax.data.samples._samples", lambda *_: None)
    lengths = np.array([65_536, 256, 16, 4, 2, 2])  # 2³¹ clicks in all prefixes
    whole = Sessions(np.ones(lengths.sum(), np.int32), np.append(0, np.cumsum(lengths)))
    with pytest.raises(InputError, match="2,147,483,648 clicks"):
        prefixes(whole)
    prefixes(take(whole, np.arange(5)))


def test_last_clicks_leave_single_clicks_out():
    assert table(last_clicks(WHOLE)) == [([1, 2], 3, 0), ([5], 6, 2)]


def test_take_keeps_the_order_asked_for():
    taken = take(WHOLE, np.array([2, 0]))
    assert [taken[i].tolist() for i in range(2)] == [[5, 6], [1, 2, 3]]


def test_ragged_agrees_with_slices_across_blocks(monkeypatch):
    monkeypatch.setattr("dmsrec_jax.data.samples._BLOCK", 7)
    rng = np.random.Generator(np.random.PCG64(0))
    items = rng.integers(1, 100, 500).astype(np.int32)
    lengths = rng.integers(0, 20, 200)
    starts = rng.integers(0, 480, 200)
    out, offsets = ragged(items, starts, lengths)
    assert out.tolist() == np.concatenate([items[s : s + n] for s, n in zip(starts, lengths, strict=True)]).tolist()
    assert offsets.tolist() == [0, *np.cumsum(lengths)]


@pytest.mark.parametrize("form", FORMS)
def test_align_finds_the_form(form):
    rows = FORMS[form](WHOLE)
    aligned, found = align(rows, rows.targets, WHOLE, "file")
    assert found == form
    assert aligned.chains.tolist() == rows.chains.tolist()


def test_align_names_the_row_that_is_no_prefix():
    rows = prefixes(WHOLE)
    wrong = rows.items.copy()
    wrong[2] = 9
    with pytest.raises(InputError, match="file: training row 1 is no prefix"):
        align(Sessions(wrong, rows.offsets), rows.targets, WHOLE, "file")
    with pytest.raises(InputError, match="file: training row 2 is no prefix"):
        align(rows, np.array([2, 3, 7]), WHOLE, "file")


@pytest.mark.parametrize("lacking", [1, 2, 3])
def test_align_takes_the_last_rows_of_all_prefixes(lacking):
    whole = sessions([1, 2, 3, 4, 5], [6], [7, 8], [9, 7, 8])
    every = prefixes(whole, longest_first=True)
    rows = every.rows(lacking, len(every))
    aligned, form = align(rows, rows.targets, whole, "file")
    assert table(aligned) == table(every)[lacking:]
    assert form == f"all prefixes, longest first, without the first {lacking} of the first session"
    with pytest.raises(InputError, match=f"training row {6 - lacking} is no prefix"):
        align(rows, np.append(rows.targets[:-1], 1), whole, "file")


def test_align_refuses_rows_that_end_before_the_sessions():
    whole = sessions([1, 2], [3, 4], [5, 6])
    with pytest.raises(InputError, match="2 training rows are not all"):
        align(prefixes(whole).rows(0, 2), np.array([2, 4]), whole, "file")


@pytest.mark.parametrize("longest_first", [False, True])
def test_chains_of_prefixes_are_their_sessions(longest_first):
    # The first two sessions start alike, the last two are alike: chains must not run together.
    whole = sessions([1, 2, 3], [1, 2], [4, 4, 4], [5, 6], [5, 6])
    rows = prefixes(whole, longest_first=longest_first)
    inferred = infer_chains(rows, rows.targets)
    assert inferred.chains.tolist() == rows.chains.tolist()
    back = longest(inferred)
    assert [back[i].tolist() for i in range(len(back))] == [whole[i].tolist() for i in range(len(whole))]


def test_whole_sessions_are_chains_of_their_own():
    # [7, 8, 9] extends [7, 8] by chance.
    rows = last_clicks(sessions([7, 8], [7, 8, 9], [1, 2, 3], [4, 5, 6], [2, 5, 3]))
    assert infer_chains(rows, rows.targets).chains.tolist() == [0, 1, 2, 3, 4]
    pair = last_clicks(sessions([7, 8], [7, 8, 9]))
    assert infer_chains(pair, pair.targets, prefixed=True).chains.tolist() == [0, 0]
    assert infer_chains(pair, pair.targets, prefixed=False).chains.tolist() == [0, 1]
