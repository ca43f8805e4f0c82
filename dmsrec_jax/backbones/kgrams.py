"""The heterogeneous session graph of MSGIFSR (Guo et al., WSDM 2022, section 3.2): its nodes are runs of k clicks.

A node of order k is one of a session's distinct runs of k consecutive clicks; of order 1, one of its items. Two runs of
k clicks that follow each other, the second one click later, are k + 1 clicks: so the distinct transitions of order k
are the distinct runs of k + 1 clicks, and so are those from an item to the run of k clicks after it, and from a run to
the item after it.

Everything comes from a packed batch, inside jit. Order k >= 2 has as many rows as the batch has clicks, and one more:
row i is a node where the run that begins at click i is the first of its kind.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from dmsrec_jax.graphs import SessionBatch


class Runs(NamedTuple):
    """The nodes of one order. The last row is never a session's node."""

    clicks: Int[Array, "rows k"]
    """Rows of ``graph.nodes``, oldest click first."""
    session: Int[Array, "rows"]
    """The owner; B where the row is no node."""
    last: Int[Array, "B"]
    """Each session's last run."""


class Transitions(NamedTuple):
    """Edges from the nodes of one order to those of one order; spare ones lead from last row to last row."""

    source: int
    sink: int
    """Orders: equal, or one of them is 1."""
    senders: Int[Array, "edges"]
    receivers: Int[Array, "edges"]


def session_graph(batch: SessionBatch, order: int) -> tuple[list[Runs], list[Transitions]]:
    """The nodes of orders 1 to ``order``, and all transitions between them.

    A session of fewer than k clicks has one node of order k, its smallest item k times, without transitions, as the
    released code has it.
    """
    graph = batch.graph
    runs = [Runs(jnp.arange(len(graph.nodes))[:, None], batch.node_session, batch.last_node)]
    transitions = [Transitions(1, 1, graph.senders, graph.receivers)]
    if order == 1:
        return runs, transitions
    rows, dummy, last_row = len(batch.click_node) + 1, batch.n_sessions, len(graph.nodes) - 1
    node = jnp.append(batch.click_node, last_row)
    session = jnp.append(batch.click_session, dummy)
    length = jnp.append(batch.length, 0)[session]
    starts = jnp.cumulative_sum(batch.length, include_initial=True)[:-1]
    is_start = jnp.arange(rows) == jnp.append(starts, rows)[session]
    first_item = (jnp.cumsum(graph.n_node) - graph.n_node)[session]

    alike, whole = first_alike(node, _later(node, 1), _inside(session, 2, dummy)), _inside(session, 2, dummy)
    for k in range(2, order + 1):
        is_short = is_start & (length < k)
        is_node = (whole & (alike == jnp.arange(rows))) | is_short
        clicks = jnp.stack([_later(node, i) for i in range(k)], axis=1)
        end = starts + batch.length - k
        runs.append(
            Runs(
                jnp.where(is_short[:, None], first_item[:, None], clicks),
                jnp.where(is_node, session, dummy),
                jnp.where(batch.length < k, starts, alike[jnp.maximum(end, 0)]),
            )
        )
        whole = _inside(session, k + 1, dummy)
        longer = first_alike(alike, _later(alike, 1), whole)
        is_edge = whole & (longer == jnp.arange(rows))

        def ends(order: int, at: Array, is_edge: Bool[Array, "rows"] = is_edge) -> Int[Array, "rows"]:
            return jnp.where(is_edge, at, last_row if order == 1 else rows - 1)

        transitions += [
            Transitions(k, k, ends(k, alike), ends(k, _later(alike, 1))),
            Transitions(1, k, ends(1, node), ends(k, _later(alike, 1))),
            Transitions(k, 1, ends(k, alike), ends(1, _later(node, k))),
        ]
        alike = longer
    return runs, transitions


def first_alike(left: Int[Array, "rows"], right: Int[Array, "rows"], whole: Bool[Array, "rows"]) -> Int[Array, "rows"]:
    """For each row the first with the same pair of numbers; rows that are not ``whole`` stay by themselves."""
    place = jnp.arange(len(left))
    left, right = jnp.where(whole, left, -1), jnp.where(whole, right, place)
    left, right, place = jax.lax.sort((left, right, place), num_keys=3)
    is_new = (left != jnp.roll(left, 1)) | (right != jnp.roll(right, 1))
    leader = jax.lax.cummax(jnp.where(is_new, jnp.arange(len(left)), 0))
    return jnp.zeros_like(place).at[place].set(place[leader], unique_indices=True)


def _inside(session: Int[Array, "rows"], k: int, dummy: int) -> Bool[Array, "rows"]:
    """Whether the k clicks from each row on are one session's."""
    return (session == _later(session, k - 1)) & (session < dummy)


def _later(values: Int[Array, "rows"], clicks: int) -> Int[Array, "rows"]:
    """The values so many clicks later; the last one for ever."""
    return values[jnp.minimum(jnp.arange(len(values)) + clicks, len(values) - 1)]
