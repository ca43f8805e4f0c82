"""Samples from sessions (prefixes or last clicks), and back: which rows are prefixes of one session."""

import numpy as np

from dmsrec_jax.data.dataset import Sessions, Split
from dmsrec_jax.errors import InputError

MAX_CLICKS = (1 << 31) - 1
_BLOCK = 1 << 22
"""Clicks gathered at once, so that the int64 index of a ragged gather stays small beside its int32 result."""


def ragged(items: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Concatenates the slices ``items[starts[i] : starts[i] + lengths[i]]``.

    Returns:
      The clicks, int32 [sum(lengths)], and their offsets, int64 [len(lengths) + 1].
    """
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    out = np.empty(offsets[-1], np.int32)
    first = 0
    while first < len(lengths):
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _BLOCK, side="right")) - 1)
        begin, end = offsets[first], offsets[last]
        shift = np.repeat(starts[first:last] - offsets[first:last], lengths[first:last])
        out[begin:end] = items[shift + np.arange(begin, end)]
        first = last
    return out, offsets


def take(sessions: Sessions, rows: np.ndarray) -> Sessions:
    """The sessions ``rows`` (int [n]), in that order."""
    return Sessions(*ragged(sessions.items, sessions.offsets[rows], sessions.lengths[rows]))


def _samples(sessions: Sessions, chains: np.ndarray, lengths: np.ndarray) -> Split:
    """Row i: the first ``lengths[i]`` clicks of session ``chains[i]``; the click after them is its target."""
    starts = sessions.offsets[chains]
    targets = np.asarray(sessions.items[starts + lengths], np.int32)
    return Split(*ragged(sessions.items, starts, lengths), targets, chains.astype(np.int32))


def cut_rows(rows: Split, most: int) -> tuple[Split, int]:
    """``rows`` with at most ``most`` clicks each, the last ones; and how many were longer."""
    lengths = np.minimum(rows.lengths, most)
    cut = Split(*ragged(rows.items, rows.offsets[1:] - lengths, lengths), rows.targets, rows.chains)
    return cut, int((rows.lengths > most).sum())


def last_clicks(sessions: Sessions) -> Split:
    """One sample per session of two clicks or more: the last click is the target."""
    chains = np.flatnonzero(sessions.lengths >= 2)
    return _samples(sessions, chains, sessions.lengths[chains] - 1)


def prefixes(sessions: Sessions, *, longest_first: bool = False) -> Split:
    """Every prefix of every session with the click after it as its target, shortest first unless ``longest_first``.

    Raises:
      InputError: they would hold more than `MAX_CLICKS` clicks, since prefixes grow with the square of the length.
    """
    rows = np.maximum(sessions.lengths - 1, 0)
    if (total := int((rows * (rows + 1) // 2).sum())) > MAX_CLICKS:
        raise InputError(
            f"all prefixes (--augment-prefixes) hold {total:,} clicks before any --keep-last, too many; the longest "
            f"session has {rows.max() + 1:,}"
        )
    chains = np.repeat(np.arange(len(sessions)), rows)
    rank = np.arange(len(chains)) - np.repeat(np.cumsum(rows) - rows, rows)
    return _samples(sessions, chains, rows[chains] - rank if longest_first else rank + 1)


def shortest_first(sessions: Sessions) -> Split:
    """`prefixes`, shortest first: the order of Amazon Beauty's released rows."""
    return prefixes(sessions)


def longest_first(sessions: Sessions) -> Split:
    """`prefixes`, longest first: the order of SR-GNN's released rows."""
    return prefixes(sessions, longest_first=True)


FORMS = {
    "one row per session": last_clicks,
    "all prefixes, shortest first": shortest_first,
    "all prefixes, longest first": longest_first,
}


def align(rows: Sessions, targets: np.ndarray, sessions: Sessions, source: str) -> tuple[Split, str]:
    """Finds the session of each training row by rebuilding the rows in each known form.

    The first session may lack its first rows: SR-GNN's yoochoose1_64 and 1_4 are the last rows of all prefixes.

    Args:
      rows: the rows' input clicks.
      targets: the rows' next clicks, int [rows].
      sessions: whole training sessions, in the rows' order.
      source: what to name in an error.

    Returns:
      The rows with their chains, and the name of their form in `FORMS`, with how many rows the first session lacks.

    Raises:
      InputError: the rows are in no form the samples of these sessions; the first row that differs is named.
    """
    agreeing = 0
    for form, build in FORMS.items():
        built = build(sessions)
        lacking = len(built) - len(rows)
        if 0 < lacking < np.count_nonzero(built.chains == 0):
            built = built.rows(lacking, len(built))
            form += f", without the first {lacking} of the first session"
        if np.array_equal(built.offsets, rows.offsets):
            wrong = built.items != rows.items
            if not wrong.any() and np.array_equal(built.targets, targets):
                return built, form
        agreeing = max(agreeing, _first_difference(rows, targets, built))
    if agreeing == len(rows):
        raise InputError(f"{source}: {len(rows)} training rows are not all that the sessions give")
    raise InputError(f"{source}: training row {agreeing} is no prefix of its session")


def _first_difference(rows: Sessions, targets: np.ndarray, built: Split) -> int:
    """The first row in which ``rows`` is not ``built``."""
    n = min(len(rows), len(built))
    lengths = np.flatnonzero(rows.lengths[:n] != built.lengths[:n])
    n = int(lengths[0]) if len(lengths) else n
    clicks = np.flatnonzero(rows.items[: rows.offsets[n]] != built.items[: rows.offsets[n]])
    if len(clicks):
        n = int(np.searchsorted(rows.offsets, clicks[0], side="right")) - 1
    nexts = np.flatnonzero(targets[:n] != built.targets[:n])
    return int(nexts[0]) if len(nexts) else n


def infer_chains(rows: Sessions, targets: np.ndarray, *, prefixed: bool | None = None) -> Split:
    """Groups consecutive rows that extend each other by one click into chains, in either order.

    Args:
      rows: the rows' input clicks.
      targets: the rows' next clicks, int [rows].
      prefixed: whether rows are prefixes at all; by default they are if more than half of the rows longer than one
        click extend a neighbour. (Among whole sessions, one may extend its neighbour by chance.)

    Returns:
      The rows with their chains, numbered from 0.
    """
    ascending = _extends(rows, targets, np.arange(1, len(rows)), np.arange(len(rows) - 1))
    descending = _extends(rows, targets, np.arange(len(rows) - 1), np.arange(1, len(rows)))
    together = ascending if ascending.sum() >= descending.sum() else descending
    if prefixed is None:
        prefixed = 2 * int(together.sum()) > int((rows.lengths > 1).sum())
    new = ~together if prefixed else np.ones_like(together)
    chains = np.concatenate([np.zeros(min(1, len(rows)), np.int32), np.cumsum(new, dtype=np.int32)])
    return Split(rows.items, rows.offsets, targets, chains)


def _extends(rows: Sessions, targets: np.ndarray, longer: np.ndarray, shorter: np.ndarray) -> np.ndarray:
    """Whether row ``longer[i]`` is row ``shorter[i]`` and its target, bool [len(longer)]."""
    lengths = rows.lengths
    fits = np.flatnonzero(lengths[longer] == lengths[shorter] + 1)
    far, near = longer[fits], shorter[fits]
    left, offsets = ragged(rows.items, rows.offsets[far], lengths[near])
    right, _ = ragged(rows.items, rows.offsets[near], lengths[near])
    differs = np.add.reduceat(left != right, offsets[:-1]) if len(fits) else np.zeros(0, np.int64)
    result = np.zeros(len(longer), bool)
    result[fits] = (differs == 0) & (rows.items[rows.offsets[far + 1] - 1] == targets[near])
    return result


def _longest_rows(split: Split) -> np.ndarray:
    """The longest row of each chain, in the chains' order."""
    order = np.lexsort((split.lengths, split.chains))
    return order[np.append(np.flatnonzero(np.diff(split.chains[order])), len(order) - 1)] if len(order) else order


def without_longest(split: Split) -> Split:
    """The rows but for each chain's longest, whose target is the session's last click; chains are numbered anew."""
    keep = np.ones(len(split), bool)
    keep[_longest_rows(split)] = False
    kept = np.flatnonzero(keep)
    rows = take(split, kept)
    chains = np.unique(split.chains[kept], return_inverse=True)[1].astype(np.int32)
    return Split(rows.items, rows.offsets, split.targets[kept], chains)


def longest(split: Split) -> Sessions:
    """The whole session of each chain: its longest row and that row's target, oldest click first."""
    rows = _longest_rows(split)
    items, offsets = ragged(split.items, split.offsets[rows], split.lengths[rows])
    return Sessions(np.insert(items, offsets[1:], split.targets[rows]), offsets + np.arange(len(offsets)))
