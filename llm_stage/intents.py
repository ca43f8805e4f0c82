"""From items that an engine named to intents: distinct titles, explicit or latent per session (paper, eq. 4, 5)."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from dmsrec_jax.artifacts import IntentLists
from dmsrec_jax.data import Sessions
from dmsrec_jax.data.samples import ragged
from llm_stage.engines.base import Answer
from llm_stage.questions import RowSpace


class Answers(NamedTuple):
    """Answers of all questions as arrays, in the order of their rows."""

    rows: np.ndarray
    """int64 [answers], ascending: the row each question is asked by."""
    picks: Sessions
    """Items named, in the order named."""
    counts: dict[str, np.ndarray]
    """int64 [answers] of each of `COUNTS`."""


COUNTS = ("invalid", "duplicates", "prompt_tokens", "cached_tokens", "output_tokens", "refused")


def gather(answers: Iterable[tuple[int, Answer]]) -> Answers:
    """Answers from their store."""
    rows, picks, numbers = [], [], []
    for row, answer in answers:
        rows.append(row)
        picks.append(answer.picks)
        numbers.append([getattr(answer, name) for name in COUNTS])
    order = np.argsort(rows) if rows else np.zeros(0, np.int64)
    lengths = np.array([len(items) for items in picks], np.int64)
    flat = np.fromiter((item for items in picks for item in items), np.int32, int(lengths.sum()))
    starts = np.cumsum(lengths) - lengths
    counts = np.array(numbers, np.int64).reshape(-1, len(COUNTS))[order]
    return Answers(
        np.array(rows, np.int64)[order],
        Sessions(*ragged(flat, starts[order], lengths[order])),
        dict(zip(COUNTS, counts.T, strict=True)),
    )


def spread(picks: Sessions, answer: np.ndarray) -> Sessions:
    """Row i gets the picks of answer ``answer[i]``."""
    return Sessions(*ragged(picks.items, picks.offsets[:-1][answer], picks.lengths[answer]))


class Named(NamedTuple):
    """Intents of many sessions; ids are rows of ``titles``."""

    titles: np.ndarray
    """<U… [n_intents], sorted: each distinct title that was named."""
    explicit: IntentLists
    latent: IntentLists
    untitled: int
    """Items named that have no title, and so are no intent."""


def classify(picks: Sessions, space: RowSpace, titles: list[str], rule: str) -> Named:
    """Intents of each row of ``space`` from the items named for it, in the order named, each title once.

    Args:
      picks: items named, one list per row.
      space: the rows' sessions and candidates.
      titles: by item id; "" where there is none.
      rule: "session": explicit is what equals a title of the session's own items (eq. 5), latent the rest.
        "candidates": explicit is what equals a title of its candidates (the other literal reading of "selected from
        the candidate set"), latent what the model named beside them.
    """
    texts, text_of = np.unique(np.array(titles, np.str_), return_inverse=True)
    untitled = np.array([not title.strip() for title in titles])[picks.items]
    row = np.repeat(np.arange(len(picks)), picks.lengths)[~untitled]
    key = row * len(texts) + text_of[picks.items[~untitled]]
    key = key[np.sort(np.unique(key, return_index=True)[1])]  # in the order named
    own = _keys(space.sessions) if rule == "session" else _keys(_as_lists(space.candidates))
    explicit = np.isin(key, own[0] * len(texts) + text_of[own[1]])
    used, ids = np.unique(key % len(texts), return_inverse=True)
    lists = []
    for chosen in (explicit, ~explicit):
        counts = np.bincount(key[chosen] // len(texts), minlength=len(picks))
        lists.append(IntentLists(np.append(0, np.cumsum(counts)).astype(np.int32), ids[chosen].astype(np.int32)))
    return Named(texts[used], lists[0], lists[1], int(untitled.sum()))


def part_of(lists: IntentLists, start: int, stop: int) -> IntentLists:
    """The lists of rows ``start`` to ``stop`` (exclusive)."""
    first, last = lists.offsets[start], lists.offsets[stop]
    return IntentLists(lists.offsets[start : stop + 1] - first, lists.ids[first:last])


def _keys(lists: Sessions) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat(np.arange(len(lists)), lists.lengths), np.asarray(lists.items)


def _as_lists(table: np.ndarray) -> Sessions:
    return Sessions(table.ravel(), np.arange(len(table) + 1) * table.shape[1])
