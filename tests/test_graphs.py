"""Session graphs and packing, against a plain loop."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from dmsrec_jax.data import Sessions
from dmsrec_jax.graphs import build_graphs, pack, pad_graphs, rectangle_sizes
from dmsrec_jax.orders import batch_budget, fixed_order


def random_sessions(n: int, seed: int, longest: int = 9, n_items: int = 6) -> Sessions:
    """Sessions that repeat items often."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, n)
    return Sessions(rng.integers(1, n_items + 1, lengths.sum()).astype(np.int32), np.append(0, np.cumsum(lengths)))


def plain_graph(clicks: list[int]) -> tuple[list[int], set[tuple[int, int]]]:
    """Distinct items, and distinct transitions between items."""
    return sorted(set(clicks)), set(itertools.pairwise(clicks))


def test_graphs_equal_a_plain_loop():
    sessions = random_sessions(40, seed=1)
    graphs = build_graphs(sessions)
    for row in range(len(sessions)):
        items, transitions = plain_graph(sessions[row].tolist())
        node = slice(graphs.node_offsets[row], graphs.node_offsets[row + 1])
        edge = slice(graphs.edge_offsets[row], graphs.edge_offsets[row + 1])
        click = slice(graphs.click_offsets[row], graphs.click_offsets[row + 1])
        own = graphs.node_items[node]
        assert own.tolist() == items
        assert own[graphs.click_nodes[click]].tolist() == sessions[row].tolist()
        pairs = list(zip(own[graphs.edge_senders[edge]], own[graphs.edge_receivers[edge]], strict=True))
        assert len(pairs) == len(set(pairs))
        assert set(pairs) == transitions
        expected = [(b, a) in transitions for a, b in pairs]
        assert graphs.edge_reciprocal[edge].tolist() == expected


def test_hand_computed_graph():
    # 5 → 3 → 5 → 5 → 8: nodes 3, 5, 8; transitions 5→3, 3→5, 5→5, 5→8.
    graphs = build_graphs(Sessions(np.array([5, 3, 5, 5, 8], np.int32), np.array([0, 5])), np.array([7], np.int32))
    assert graphs.node_items.tolist() == [3, 5, 8]
    assert graphs.click_nodes.tolist() == [1, 0, 1, 1, 2]
    assert list(zip(graphs.edge_senders.tolist(), graphs.edge_receivers.tolist(), strict=True)) == [
        (0, 1), (1, 0), (1, 1), (1, 2),
    ]  # fmt: skip
    assert graphs.edge_reciprocal.tolist() == [True, True, True, False]
    assert graphs.node_clicks.tolist() == [1, 3, 1]
    assert graphs.edge_in_weights.tolist() == [0.5, 1.0, 0.5, 1.0]
    np.testing.assert_allclose(graphs.edge_out_weights, [1.0, 1 / 3, 1 / 3, 1 / 3])
    assert graphs.targets.tolist() == [7, 0]
    assert [o[-1] - o[-2] for o in (graphs.node_offsets, graphs.edge_offsets, graphs.click_offsets)] == [0, 0, 0]


def test_packed_batch_holds_its_sessions():
    sessions = random_sessions(30, seed=2)
    graphs = build_graphs(sessions, np.arange(1, 31, dtype=np.int32))
    chosen = [4, 17, 30, 0, 8]  # 30 is the empty session
    budget = batch_budget(graphs, 5, 6)
    batch = jax.jit(pack, static_argnames="budget")(jax.tree.map(jnp.asarray, graphs), jnp.array(chosen), budget)
    items = np.asarray(batch.graph.nodes)
    for place, row in enumerate(chosen):
        clicks = np.asarray(batch.click_node)[np.asarray(batch.click_session) == place]
        expected = [] if row == 30 else sessions[row].tolist()
        assert items[clicks].tolist() == expected
        positions = np.asarray(batch.click_position)[np.asarray(batch.click_session) == place]
        assert positions.tolist() == list(range(len(expected)))[::-1]
        assert int(batch.length[place]) == len(expected)
        assert int(batch.target[place]) == (0 if row == 30 else row + 1)
        if expected:
            assert items[int(batch.last_node[place])] == expected[-1]
            _, transitions = plain_graph(expected)
            inside = np.asarray(batch.node_session)[np.asarray(batch.graph.senders)] == place
            pairs = zip(
                items[np.asarray(batch.graph.senders)[inside]],
                items[np.asarray(batch.graph.receivers)[inside]],
                strict=True,
            )
            assert set(pairs) == transitions
    counts = np.asarray(batch.node_clicks)[np.asarray(batch.node_session) == 0]
    assert counts.tolist() == np.unique(sessions[4], return_counts=True)[1].tolist()


def test_rectangles_hold_each_click_once():
    sessions = random_sessions(30, seed=2, longest=30)
    graphs = build_graphs(sessions)
    chosen = fixed_order(graphs, 8)[1]
    known = batch_budget(graphs, 8, 4)
    for budget in (known, known._replace(lengths=()), known._replace(lengths=(30,) * 8)):
        batch = pack(jax.tree.map(jnp.asarray, graphs), jnp.asarray(chosen), budget)
        owners = np.concatenate([rectangle.session for rectangle in batch.rectangles])
        assert sorted(owners) == list(range(8))
        for rectangle in batch.rectangles:
            for session, click, real in zip(*map(np.asarray, rectangle), strict=True):
                assert click[real].tolist() == np.flatnonzero(np.asarray(batch.click_session) == session).tolist()
                assert click.max() < budget.clicks


def test_rectangles_are_few_and_waste_little():
    lengths = [139, 60, 50, 40, 33, *[20] * 5, *[9] * 20, *[2] * 40, *[0] * 30]
    sizes = rectangle_sizes(lengths)
    assert sum(rows for rows, _ in sizes) == len(lengths)
    widths = np.repeat([width for _, width in sizes], [rows for rows, _ in sizes])
    assert (widths >= lengths).all()
    assert len(sizes) < 6
    assert (widths**2).sum() < 1.5 * (np.array(lengths) ** 2).sum()


def test_no_index_leaves_the_batch_and_padding_stays_with_the_dummy_graph():
    sessions = random_sessions(23, seed=3)
    graphs = build_graphs(sessions)
    budget = batch_budget(graphs, 5, 5)._replace(nodes=200, edges=150, clicks=180)
    batch = pack(jax.tree.map(jnp.asarray, graphs), jnp.array([0, 1, 2, 23, 23]), budget)
    for index in (batch.graph.senders, batch.graph.receivers, batch.click_node, batch.last_node):
        assert index.min() >= 0
        assert index.max() < budget.nodes
    for owner in (batch.node_session, batch.click_session):
        assert owner.min() >= 0
        assert owner.max() == 5
        assert (jnp.diff(owner) >= 0).all()
    real_edges = int(batch.graph.n_edge[:-1].sum())
    dummy_node = int(batch.graph.n_node[:-1].sum())
    assert (batch.graph.senders[real_edges:] == dummy_node).all()
    assert (batch.graph.receivers[real_edges:] == dummy_node).all()
    assert (batch.graph.nodes[dummy_node:] == 0).all()


def test_padded_graphs_pack_alike():
    graphs = build_graphs(random_sessions(6, seed=5))
    budget = batch_budget(graphs, 8, 1)._replace(nodes=64, edges=64, clicks=64)
    padded = pad_graphs(graphs, budget)
    plain = pack(jax.tree.map(jnp.asarray, graphs), jnp.array([0, 1, 2, 3, 4, 5, 6, 6]), budget)
    wide = pack(jax.tree.map(jnp.asarray, padded), jnp.arange(8), budget)
    jax.tree.map(np.testing.assert_array_equal, plain, wide)


def test_single_click_sessions_have_no_edges():
    graphs = build_graphs(Sessions(np.array([2, 9], np.int32), np.array([0, 1, 2])))
    assert len(graphs.edge_senders) == 0
    batch = pack(jax.tree.map(jnp.asarray, graphs), jnp.array([1, 0]), batch_budget(graphs, 2, 1))
    assert batch.graph.nodes[batch.last_node].tolist() == [9, 2]
