"""The graph of intent units, against a plain loop over clicks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmsrec_jax.backbones.kgrams import first_alike, session_graph
from dmsrec_jax.data import Sessions
from dmsrec_jax.graphs import build_graphs, pack
from dmsrec_jax.orders import batch_budget
from tests.conftest import random_sessions

ORDER = 3
CLICKS = [[5], [2, 2], [1, 2, 1, 2, 1, 2], [3, 3, 3, 3], [4, 1], *(row.tolist() for row in random_sessions(3, 12))]


@pytest.fixture(scope="module", params=[0, 32], ids=["exact", "padded"])
def built(request):
    """Sessions in another order and an empty place, with their nodes and edges."""
    sessions = Sessions(np.concatenate(CLICKS).astype(np.int32), np.append(0, np.cumsum([len(c) for c in CLICKS])))
    graphs = build_graphs(sessions)
    order = np.append(np.random.default_rng(0).permutation(len(CLICKS)), len(CLICKS))
    budget = batch_budget(graphs, len(order), 1)
    clicks = len(sessions.items) + request.param
    budget = budget._replace(clicks=clicks, nodes=budget.nodes + request.param)
    batch = jax.jit(pack, static_argnums=2)(jax.tree.map(jnp.asarray, graphs), jnp.asarray(order), budget)
    runs, transitions = jax.jit(session_graph, static_argnums=1)(batch, ORDER)
    return [CLICKS[i] for i in order[:-1]], batch, runs, transitions


def items_of(batch, runs):
    return np.asarray(batch.graph.nodes)[np.asarray(runs.clicks)]


def plain_runs(clicks: list[int], k: int) -> set[tuple[int, ...]]:
    found = {tuple(clicks[i : i + k]) for i in range(len(clicks) - k + 1)}
    return found or {(min(clicks),) * k}


@pytest.mark.parametrize("k", range(1, ORDER + 1))
def test_nodes_are_distinct_runs(built, k):
    sessions, batch, runs, _ = built
    items, owner = items_of(batch, runs[k - 1]), np.asarray(runs[k - 1].session)
    for session, clicks in enumerate(sessions):
        own = [tuple(row) for row in items[owner == session].tolist()]
        assert len(own) == len(set(own))
        assert set(own) == plain_runs(clicks, k)
        last = runs[k - 1].last[session]
        assert owner[last] == session
        if len(clicks) >= k:
            assert items[last].tolist() == clicks[-k:]
    assert set(owner.tolist()) <= {*range(len(sessions)), batch.n_sessions}
    assert owner[-1] == batch.n_sessions


def test_edges_are_distinct_transitions(built):
    sessions, batch, runs, transitions = built
    for source, sink, senders, receivers in transitions:
        edges = []
        for sender, receiver in zip(senders.tolist(), receivers.tolist(), strict=True):
            owners = int(runs[source - 1].session[sender]), int(runs[sink - 1].session[receiver])
            assert owners[0] == owners[1]
            if owners[0] < len(sessions):
                ends = items_of(batch, runs[source - 1])[sender], items_of(batch, runs[sink - 1])[receiver]
                edges.append((owners[0], *(tuple(end.tolist()) for end in ends)))
        assert len(edges) == len(set(edges))
        step = 1 if source == sink else source
        due = {
            (session, tuple(clicks[i : i + source]), tuple(clicks[i + step : i + step + sink]))
            for session, clicks in enumerate(sessions)
            for i in range(len(clicks) - step - sink + 1)
        }
        assert set(edges) == due


def test_first_alike():
    left, right = jnp.array([3, 1, 3, 3, 1, 1]), jnp.array([0, 2, 0, 1, 2, 2])
    whole = jnp.array([True, True, True, True, True, False])
    assert first_alike(left, right, whole).tolist() == [0, 1, 0, 3, 1, 5]
