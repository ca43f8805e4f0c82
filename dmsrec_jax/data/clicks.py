"""From clicks to samples: filters, sessions, the split by time, item ids."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dmsrec_jax.data.dataset import Sessions
from dmsrec_jax.data.samples import last_clicks, prefixes, take
from dmsrec_jax.data.splits import n_first
from dmsrec_jax.data.write import Prepared
from dmsrec_jax.errors import InputError

_DAY = 86_400_000_000
"""Microseconds."""


@dataclass(frozen=True)
class Clicks:
    """A click log, columns of equal length in the order (session, time)."""

    session: np.ndarray
    """Any integer per session, [n]."""
    item: np.ndarray
    """uint32 [n], an index into ``names``."""
    time: np.ndarray
    """int64 [n], microseconds since 1970."""
    row: np.ndarray
    """int [n], place in the file; decides between sessions that end at the same time."""

    def __getitem__(self, chosen: np.ndarray) -> "Clicks":
        return Clicks(self.session[chosen], self.item[chosen], self.time[chosen], self.row[chosen])


def build(
    clicks: Clicks,
    names: Callable[[np.ndarray], list[str]],
    *,
    source: str,
    min_item_count: int,
    min_session_len: int,
    test_fraction: float | None,
    test_days: float | None,
    augment_prefixes: bool,
) -> Prepared:
    """Filters clicks, cuts them into training and test sessions by time and makes samples.

    In this order: items with fewer than ``min_item_count`` clicks go; sessions with fewer than ``min_session_len``
    clicks go; sessions are sorted by their last click (ties: the one that comes first in the file) and cut; test
    clicks on items that training does not have go, and test sessions of which less than two clicks are left. An item
    id is the item's rank among the raw ids in training, as text.

    Args:
      clicks: the log.
      names: raw ids of the given item codes.
      source: what to name in an error.
      min_item_count: as above.
      min_session_len: as above.
      test_fraction: share of sessions that test.
      test_days: or else: sessions that end within so many days of the last kept one's end test.
      augment_prefixes: training rows are all prefixes, not only the last click of each session.

    Raises:
      InputError: nothing is left to train or test on.
    """
    n_items, n_clicks = len(np.unique(clicks.item)), len(clicks.item)
    clicks = clicks[np.bincount(clicks.item, minlength=1)[clicks.item] >= min_item_count]
    starts, lengths = _runs(clicks.session)
    kept = lengths >= min_session_len
    n_short = int((~kept).sum())
    clicks = clicks[np.repeat(kept, lengths)]
    starts, lengths = _runs(clicks.session)
    if not len(starts):
        raise InputError(
            f"{source}: no session is left with --min-item-count {min_item_count} --min-session-len {min_session_len}"
        )
    last = clicks.time[starts + lengths - 1]
    order = np.lexsort((np.minimum.reduceat(clicks.row, starts), last))
    if test_days is None:
        n_train = n_first(len(order), 0.1 if test_fraction is None else test_fraction)
    else:
        n_train = int((last <= last.max() - int(test_days * _DAY)).sum())
    if not 0 < n_train < len(order):
        raise InputError(f"{source}: the split leaves {n_train} of {len(order)} sessions for training")

    sessions = Sessions(clicks.item, np.append(starts, len(clicks.item)))
    train, test = take(sessions, order[:n_train]), take(sessions, order[n_train:])
    codes = np.unique(train.items)
    item_ids = names(codes)
    rank = np.empty(len(codes), np.int32)
    # Not as an array of text, where each id takes the room of the longest.
    rank[sorted(range(len(codes)), key=item_ids.__getitem__)] = np.arange(1, len(codes) + 1)
    item_of = np.zeros(max(int(train.items.max()), int(test.items.max())) + 1, np.int32)
    item_of[codes] = rank
    train = Sessions(item_of[train.items], train.offsets)
    test, n_unseen, n_lost = _known(Sessions(item_of[test.items], test.offsets))
    notes = (
        f"{n_clicks:,} clicks on {n_items:,} items read; {n_clicks - len(clicks.item):,} clicks dropped with items of "
        f"fewer than {min_item_count} clicks and {n_short:,} sessions of fewer than {min_session_len}",
        f"{n_unseen:,} test clicks on items unseen in training dropped, then {n_lost:,} test sessions of fewer than 2",
    )
    rows = prefixes(train) if augment_prefixes else last_clicks(train)
    return Prepared(rows, last_clicks(test), train, sorted(item_ids), None, notes)


def _runs(sessions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of the runs of equal values."""
    new = np.ones(len(sessions), bool)
    new[1:] = sessions[1:] != sessions[:-1]
    starts = np.flatnonzero(new)
    return starts, np.diff(starts, append=len(sessions))


def _known(test: Sessions) -> tuple[Sessions, int, int]:
    """Test sessions without unseen items (id 0) and of two clicks or more; what was dropped: clicks, sessions."""
    known = test.items > 0
    lengths = np.add.reduceat(known.astype(np.int64), test.offsets[:-1])
    rest = Sessions(test.items[known], np.concatenate([[0], np.cumsum(lengths)]))
    kept = np.flatnonzero(lengths >= 2)
    return take(rest, kept), int((~known).sum()), len(test) - len(kept)
