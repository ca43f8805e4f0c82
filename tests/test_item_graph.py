import numpy as np
import pytest

from dmsrec_jax.data import Sessions
from dmsrec_jax.item_graph import WIDTH, build_item_graph, build_members
from tests.conftest import random_sessions


def csr(*rows: list[int]) -> Sessions:
    return Sessions(np.concatenate(rows).astype(np.int32), np.cumsum([0, *map(len, rows)]))


def test_by_hand():
    """1 2 3 4 5: distances 1 to 3, so 1 and 5 never meet; 2 3 once more, so 3 leads the list of 2."""
    graph = build_item_graph(csr([1, 2, 3, 4, 5], [2, 3], [7]), n_items=7, k=4)
    assert graph.neighbors.tolist() == [
        [0, 0, 0, 0],  # padding
        [2, 3, 4, 2],  # fewer than k: they repeat in turn
        [3, 1, 4, 5],  # 3 twice, then once each: 1 appears at distance 1 before 4 at 2 and 5 at 3
        [2, 4, 1, 5],
        [3, 5, 2, 1],
        [4, 3, 2, 4],
        [0, 0, 0, 0],  # never clicked
        [0, 0, 0, 0],  # clicked alone
    ]
    assert graph.counts[2].tolist() == [2, 1, 1, 1]
    assert graph.counts[1].tolist() == [1, 1, 1, 1]
    assert graph.counts[[0, 6, 7]].sum() == 0
    assert graph.neighbors.dtype == np.int32
    assert graph.counts.dtype == np.float32


def test_repeated_clicks_meet_themselves():
    """4 4: one pair at distance 1, counted in both directions."""
    graph = build_item_graph(csr([4, 4]), n_items=4, k=2)
    assert graph.neighbors[4].tolist() == [4, 4]
    assert graph.counts[4].tolist() == [2, 2]


def test_only_the_top_k_stay():
    graph = build_item_graph(csr([1, 2], [1, 3], [1, 3], [1, 4]), n_items=4, k=2)
    assert graph.neighbors[1].tolist() == [3, 2]
    assert graph.counts[1].tolist() == [2, 1]


def test_sessions_without_pairs():
    graph = build_item_graph(csr([1], [2]), n_items=3, k=12)
    assert graph.neighbors.shape == graph.counts.shape == (4, 12)
    assert not graph.neighbors.any()


def counted(sessions: Sessions, n_items: int, k: int) -> list[list[tuple[int, int]]]:
    """The released code's loops: relations in order, counted in a dictionary, sorted by count (stable), cut at k."""
    relation = []
    for row in range(len(sessions)):
        clicks = sessions[row].tolist()
        for distance in (1, 2, 3):
            for place in range(len(clicks) - distance):
                relation.append((clicks[place], clicks[place + distance]))
                relation.append((clicks[place + distance], clicks[place]))
    counts: list[dict[int, int]] = [{} for _ in range(n_items + 1)]
    for near, far in relation:
        counts[near][far] = counts[near].get(far, 0) + 1
    return [sorted(row.items(), key=lambda pair: pair[1], reverse=True)[:k] for row in counts]


@pytest.mark.parametrize("seed", range(3))
def test_equals_plain_loops(seed):
    sessions = random_sessions(seed, 200, n_items=40)
    graph = build_item_graph(sessions, 40, k=5)
    for item, expected in enumerate(counted(sessions, 40, 5)):
        found = list(zip(graph.neighbors[item].tolist(), graph.counts[item].tolist(), strict=True))
        turns = [expected[i % len(expected)] for i in range(5)] if expected else [(0, 0)] * 5
        assert found == turns, item


def test_members_by_hand():
    members = build_members(csr([1, 2, 1], [3], [2, 3]), n_items=4, like=csr([1, 2, 1], [3], [2, 3], [4, 4]))
    assert members.of_sessions.members[:, :3].tolist() == [[1, 2, 0], [3, 0, 0], [2, 3, 0], [0, 0, 0], [0, 0, 0]]
    assert members.of_sessions.owners.tolist() == [0, 1, 2, 4, 4]
    assert members.of_items.members[:, :3].tolist() == [[0, 4, 4], [0, 2, 4], [1, 2, 4], [4, 4, 4], [4, 4, 4]]
    assert members.of_items.owners.tolist() == [1, 2, 3, 4, 4]
    assert members.per_item.tolist() == [0, 1, 0.5, 0.5, 0]
    assert members.per_session.tolist() == [0.5, 1, 0.5, 0, 0]


def test_more_members_than_a_row_holds():
    length = 2 * WIDTH + 1
    members = build_members(csr(list(range(length, 0, -1)), *[[5]] * WIDTH), n_items=length)
    rows = members.of_sessions.members[members.of_sessions.owners == 0]
    assert rows.shape == (3, WIDTH)
    assert rows.ravel().tolist() == [*range(1, length + 1)] + [0] * (3 * WIDTH - length)
    rows = members.of_items.members[members.of_items.owners == 5]
    assert rows.ravel().tolist() == [*range(WIDTH + 1)] + [WIDTH + 1] * (WIDTH - 1)
