"""Orders hold each session once, and their batches fit the budget."""

import jax
import numpy as np
import pytest

from dmsrec_jax.graphs import build_graphs
from dmsrec_jax.orders import batch_budget, fixed_order, stratified_order
from tests.conftest import random_sessions


@pytest.mark.parametrize(("n", "sessions", "devices"), [(1, 4, 1), (23, 4, 1), (24, 4, 2), (100, 8, 4), (100, 7, 1)])
def test_orders_hold_each_session_once_within_the_budget(n, sessions, devices):
    data = random_sessions(n, n, longest=20)
    graphs = build_graphs(data)
    steps = -(-n // sessions) + 1
    budget = batch_budget(graphs, sessions, steps, devices)
    sizes = {
        "nodes": np.append(np.diff(graphs.node_offsets)[:-1], 0),
        "edges": np.append(np.diff(graphs.edge_offsets)[:-1], 0),
        "clicks": np.append(np.diff(graphs.click_offsets)[:-1], 0),
    }
    seen = set()
    for seed in range(5):
        order = np.asarray(stratified_order(jax.random.key(seed), data.lengths, sessions, steps))
        assert order.shape == (steps, sessions)
        assert sorted(order[order < n].tolist()) == list(range(n))
        assert (order[order >= n] == n).all()
        for device in range(devices):
            for name, size in sizes.items():
                room = getattr(budget, name) - (name == "nodes")
                assert size[order[:, device::devices]].sum(1).max() <= room, name
            longest_first = -np.sort(-sizes["clicks"][order[:, device::devices]], axis=1)
            assert (longest_first <= budget.lengths).all()
        seen.add(order.tobytes())
    assert n == 1 or len(seen) == 5
    fixed = fixed_order(graphs, sessions)
    assert sorted(fixed[fixed < n].tolist()) == list(range(n))


def test_a_budget_of_parts_is_enough_for_each():
    data = random_sessions(3, 60, longest=20)
    graphs = build_graphs(data)
    parts = [np.arange(0, 60, 3), np.argsort(data.lengths)[:30], np.argsort(data.lengths)[30:]]
    steps = 8
    budget = batch_budget(graphs, 4, steps, parts=parts)
    for rows in parts:
        fixed = fixed_order(graphs, 4, rows, steps)
        assert fixed.shape == (steps, 4)
        assert sorted(fixed[fixed < 60].tolist()) == sorted(rows.tolist())
        own = np.append(rows, 60)[np.asarray(stratified_order(jax.random.key(0), data.lengths[rows], 4, steps))]
        for order in (fixed, own):
            lengths = np.append(data.lengths, 0)[order]
            assert lengths.sum(1).max() <= budget.clicks
            assert (-np.sort(-lengths, axis=1) <= budget.lengths).all()
    assert budget.clicks > batch_budget(graphs, 4, steps, parts=parts[1:2]).clicks


def test_any_session_can_meet_any_other_of_its_length():
    order = [np.asarray(stratified_order(jax.random.key(seed), np.full(8, 3), 2, 4)) for seed in range(200)]
    partners = {frozenset(row) for batch in order for row in batch.tolist()}
    assert len(partners) == 8 * 7 // 2
