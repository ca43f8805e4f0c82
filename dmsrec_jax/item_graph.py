"""What all sessions say of items: GCE-GNN's global graph (Wang et al. 2020, section 4.2), and DHCN's hypergraph."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from dmsrec_jax.data.dataset import Sessions

MAX_DISTANCE = 3
WIDTH = 8
"""Members in a row; 4 and 16 were slower for Beauty's sessions."""


class Rows(NamedTuple):
    """Who belongs to whom, in rows of `WIDTH` members of one owner: sums of whole rows need no scatter."""

    members: Int[Any, "rows width"]
    owners: Int[Any, "rows"]
    """Ascending."""


class Members(NamedTuple):
    """A hypergraph whose edges are sessions, each with its distinct items.

    It grows with the clicks, not with the square of the catalogue. What pads a row is item 0 or the session behind the
    last one, which weigh 0. The arrays are numpy's as built and jax's on the device.
    """

    of_sessions: Rows
    """Items of each session."""
    of_items: Rows
    """Sessions of each item."""
    per_item: Float[Any, "items"]
    """One over the item's sessions; 0 where there are none."""
    per_session: Float[Any, "sessions"]
    """One over the session's distinct items; 0 for padding."""


class ItemGraph(NamedTuple):
    """Most frequent neighbours of each item; row 0 (padding) and isolated items hold item 0 with count 0."""

    neighbors: np.ndarray
    """int32 [n_items + 1, K], most frequent first."""
    counts: np.ndarray
    """float32 [n_items + 1, K], raw co-occurrence counts."""


def build_members(sessions: Sessions, n_items: int, like: Sessions | None = None) -> Members:
    """The hypergraph of sessions, without a Python loop.

    Args:
      sessions: at most as many as in ``like``, with at most as many clicks.
      n_items: size of the catalogue.
      like: give the arrays' sizes, so that models of any part of a data set have the same; left out: ``sessions``.
    """
    like = sessions if like is None else like
    session = np.repeat(np.arange(len(sessions)), sessions.lengths)
    session, item = np.divmod(np.unique(session * (n_items + 1) + np.asarray(sessions.items, np.int64)), n_items + 1)

    def one_over(owners: np.ndarray, n: int) -> np.ndarray:
        count = np.bincount(owners, minlength=n)
        return np.where(count > 0, 1.0 / np.maximum(count, 1), 0.0).astype(np.float32)

    return Members(
        _in_rows(item, session, len(like) + 1, len(like.items), padding=0),
        _in_rows(session, item, n_items + 1, len(like.items), padding=len(like)),
        one_over(item, n_items + 1),
        one_over(session, len(like) + 1),
    )


def _in_rows(members: np.ndarray, owners: np.ndarray, n_owners: int, most: int, *, padding: int) -> Rows:
    """Members of each owner in rows, as many rows as any ``most`` members may need."""
    in_order = np.argsort(owners, kind="stable")
    members, owners = members[in_order], owners[in_order]
    count = np.bincount(owners, minlength=n_owners)
    of_owner = -(-count // WIDTH)
    place = np.arange(len(owners)) - (np.cumsum(count) - count)[owners]
    table = np.full(((most + (WIDTH - 1) * n_owners) // WIDTH, WIDTH), padding, np.int32)
    table[(np.cumsum(of_owner) - of_owner)[owners] + place // WIDTH, place % WIDTH] = members
    owner = np.repeat(np.arange(n_owners, dtype=np.int32), of_owner)
    return Rows(table, np.pad(owner, (0, len(table) - len(owner)), constant_values=n_owners - 1))


def mean_convolution(members: Members, layers: int) -> np.ndarray:
    """The mean over 0 to ``layers`` convolutions, from items to sessions and back, as one matrix.

    Returns:
      float32 [n_items + 1, n_items + 1].
    """
    item, session = members.of_sessions.members.ravel(), np.repeat(members.of_sessions.owners, WIDTH)
    shape = len(members.per_item), len(members.per_session)
    to_items = csr_array((members.per_item[item], (item, session)), shape)
    of_sessions = csr_array((members.per_session[session] * (item > 0), (item, session)), shape)
    once, identity = (to_items @ of_sessions.T).toarray(), np.eye(shape[0], dtype=np.float32)
    total = identity
    for _ in range(layers if once.any() else 0):
        total = identity + once @ total
    return total / np.float32(layers + 1)


def build_item_graph(sessions: Sessions, n_items: int, k: int = 12) -> ItemGraph:
    """Counts pairs at distance 1 to 3 in both directions and keeps each item's top k, ties by first appearance.

    The released code samples with replacement where an item has fewer than k neighbours; here they repeat in turn.
    """
    length, start = sessions.lengths, np.asarray(sessions.offsets[:-1])
    session = np.repeat(np.arange(len(sessions)), length)
    place = np.arange(len(sessions.items)) - start[session]
    items = np.asarray(sessions.items, np.int64)
    keys, orders = [], []
    for distance in range(1, MAX_DISTANCE + 1):
        at = np.flatnonzero(place + distance < length[session])
        near, far = items[at], items[at + distance]
        # Order of first appearance: session, then distance, then place, then direction.
        order = 6 * start[session[at]] + 2 * ((distance - 1) * length[session[at]] + place[at])
        keys += [near * (n_items + 1) + far, far * (n_items + 1) + near]
        orders += [order, order + 1]
    key, order = np.concatenate(keys), np.concatenate(orders)
    by_appearance = np.argsort(order)
    pair, first, count = np.unique(key[by_appearance], return_index=True, return_counts=True)
    source, target = np.divmod(pair, n_items + 1)
    ranked = np.lexsort((first, -count, source))
    source, target, count = source[ranked], target[ranked], count[ranked]

    degree = np.bincount(source, minlength=n_items + 1)
    offset = np.cumsum(degree) - degree
    slot = np.arange(k)[None, :] % np.minimum(np.maximum(degree, 1), k)[:, None]
    at = np.minimum(offset[:, None] + slot, max(len(source) - 1, 0))
    linked = (degree > 0)[:, None] & (len(source) > 0)
    if not len(source):
        target, count = np.zeros(1, np.int64), np.zeros(1, np.int64)
    return ItemGraph(
        np.where(linked, target[at], 0).astype(np.int32),
        np.where(linked, count[at], 0).astype(np.float32),
    )


def read_sessions(
    reads: type | None, sessions: Sessions, n_items: int, k: int, like: Sessions | None = None
) -> ItemGraph | Members | None:
    """What a backbone reads of all sessions: ``reads`` is its ``READS``, ``like`` that of `build_members`."""
    if reads is Members:
        return build_members(sessions, n_items, like)
    return build_item_graph(sessions, n_items, k) if reads is ItemGraph else None


NO_SESSIONS = Sessions(np.zeros(0, np.int32), np.zeros(1, np.int64))
"""With the sizes of ``like``: a place for what was read of others to be loaded into."""
