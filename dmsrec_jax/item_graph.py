"""The global item graph of GCE-GNN (Wang et al. 2020, section 4.2): who is clicked near whom, over all sessions."""

from typing import NamedTuple

import numpy as np

from dmsrec_jax.data.dataset import Sessions

MAX_DISTANCE = 3


class ItemGraph(NamedTuple):
    """Most frequent neighbours of each item; row 0 (padding) and isolated items hold item 0 with count 0."""

    neighbors: np.ndarray
    """int32 [n_items + 1, K], most frequent first."""
    counts: np.ndarray
    """float32 [n_items + 1, K], raw co-occurrence counts."""


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
