"""Session graphs and their packed batches: the only file that imports jraph.

Graphs of all sessions are built once, vectorised, and kept in CSR form (`SessionGraphs`); `pack` gathers any B of them
into ONE padded `jraph.GraphsTuple` inside a jitted program. Nodes are a session's distinct items, edges its distinct
click transitions. What a batch leaves of its budget belongs to one dummy graph, never to indices out of range (for
those `jraph.segment_softmax` gives NaN gradients).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from dmsrec_jax.data.dataset import Sessions, Split

segment_max = jraph.segment_max
segment_softmax = jraph.segment_softmax
segment_sum = jraph.segment_sum

SIMILAR = 0.5
"""Sessions share a rectangle while their length is that share of its width or more,"""
NARROW = 16
"""or while it is no wider than that."""


class IntentRows(NamedTuple):
    """Intents of n sessions and the empty one, beside their graphs; as built by `intents.intent_rows`."""

    offsets: Int[Any, "2n+3"]
    """CSR with two rows per session: explicit, latent."""
    ids: Int[Any, "rows"]
    """Rows of ``embeddings``."""
    embeddings: Float[Any, "intents d_text"]
    """float16 or float32; each distinct intent once."""


class BatchIntents(NamedTuple):
    """Intents of a packed batch."""

    ids: Int[Array, "rows"]
    owner: Int[Array, "rows"]
    """2 · session for explicit intents, 2 · session + 1 for latent ones; 2B for padding. Ascending."""
    counts: Int[Array, "B 2"]
    embeddings: Float[Array, "intents d_text"]


class SessionGraphs(NamedTuple):
    """Graphs of n sessions in CSR form, and one empty session at row n that fills incomplete batches.

    Node indices in ``edge_*`` and ``click_nodes`` count from the session's own first node. The arrays are numpy's as
    built and jax's on the device.
    """

    node_offsets: Int[Any, "n+2"]
    node_items: Int[Any, "nodes"]
    node_clicks: Float[Any, "nodes"]
    """How often the session clicks the node's item."""
    edge_offsets: Int[Any, "n+2"]
    edge_senders: Int[Any, "edges"]
    """The earlier click's node."""
    edge_receivers: Int[Any, "edges"]
    """The later click's node."""
    edge_reciprocal: Bool[Any, "edges"]
    """Whether the opposite transition occurs as well."""
    edge_in_weights: Float[Any, "edges"]
    """One over the receiver's distinct predecessors."""
    edge_out_weights: Float[Any, "edges"]
    """One over the sender's distinct successors."""
    click_offsets: Int[Any, "n+2"]
    click_nodes: Int[Any, "clicks"]
    targets: Int[Any, "n+1"]
    intents: IntentRows | None = None

    @property
    def n_sessions(self) -> int:
        return len(self.targets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Clicks of each session, int32 [n]; of graphs on the host."""
        return np.diff(self.click_offsets)[:-1]


class Budget(NamedTuple):
    """Fixed sizes of a packed batch; ``nodes`` includes the dummy node."""

    sessions: int
    nodes: int
    edges: int
    clicks: int
    intents: int = 0
    lengths: tuple[int, ...] = ()
    """Most clicks of a batch's longest session, of its second longest, and so on; empty: as ``clicks`` allows."""


class Rectangle(NamedTuple):
    """Some sessions of a packed batch, of similar length, side by side: for what compares all clicks of a session."""

    session: Int[Array, "rows"]
    click: Int[Array, "rows width"]
    """Places in ``click_node``, a session's oldest click first."""
    real: Bool[Array, "rows width"]
    """Whether the session has that click; ``click`` is any place where not."""


class Transitions(NamedTuple):
    """Edge features of a packed batch; see `SessionGraphs`. Padding is one-way and weighs nothing."""

    reciprocal: Bool[Array, "edges"]
    in_weights: Float[Array, "edges"]
    out_weights: Float[Array, "edges"]


class SessionBatch(NamedTuple):
    """B sessions as one flat padded graph. The dummy graph has index B and owns all padding.

    ``graph.nodes`` are item ids (0 for padding), ``graph.edges`` are `Transitions`.
    """

    graph: jraph.GraphsTuple
    node_session: Int[Array, "nodes"]
    node_clicks: Float[Array, "nodes"]
    click_node: Int[Array, "clicks"]
    click_session: Int[Array, "clicks"]
    click_position: Int[Array, "clicks"]
    """0 = the session's LAST click, as the position tables of the GCE-GNN family count."""
    length: Int[Array, "B"]
    """Clicks per session; 0 where the batch is not full."""
    last_node: Int[Array, "B"]
    target: Int[Array, "B"]
    rectangles: tuple[Rectangle, ...]
    """Each session in one of them, padding in none."""
    intents: BatchIntents | None = None

    @property
    def n_sessions(self) -> int:
        return len(self.length)

    def sum_sessions(self, values: Num[Array, "rows *d"], session: Int[Array, "rows"]) -> Num[Array, "B *d"]:
        """Sums rows (of nodes or clicks) by session, leaving the dummy graph out."""
        return segment_sum(values, session, self.n_sessions + 1, indices_are_sorted=True)[:-1]

    def seen(self, n: int) -> Bool[Array, "B n"]:
        """Which of ``n`` items, the padding item among them, each session holds."""
        held = jnp.zeros((self.n_sessions + 1, n), bool)
        return held.at[self.node_session, self.graph.nodes].set(True)[:-1]


def build_graphs(
    sessions: Sessions, targets: np.ndarray | None = None, intents: IntentRows | None = None
) -> SessionGraphs:
    """Builds the graphs of all sessions, without a Python loop.

    Args:
      sessions: n sessions of at least one click.
      targets: int32 [n] next clicks; zeros if left out. A `Split` brings its own.
      intents: of the same sessions.

    Returns:
      Arrays of numpy, to be moved to the device once.
    """
    if targets is None:
        targets = sessions.targets if isinstance(sessions, Split) else np.zeros(len(sessions), np.int32)
    n, lengths = len(sessions), sessions.lengths
    session = np.repeat(np.arange(n), lengths)
    items = np.asarray(sessions.items, np.int64)
    span = int(items.max(initial=0)) + 1
    node_keys, node_of_click = np.unique(session * span + items, return_inverse=True)
    node_offsets = np.searchsorted(node_keys, np.arange(n + 1) * span)
    local = node_of_click - node_offsets[session]

    inside = np.flatnonzero(session[1:] == session[:-1])
    width = int(local.max(initial=0)) + 1
    senders, receivers = node_of_click[inside], local[inside + 1]
    edge_keys = np.unique(senders * width + receivers)
    senders, receivers = np.divmod(edge_keys, width)
    sender_session = node_keys[senders] // span
    starts = node_offsets[sender_session]
    sinks = starts + receivers
    backward = sinks * width + (senders - starts)
    found = np.minimum(np.searchsorted(edge_keys, backward), max(len(edge_keys) - 1, 0))
    edge_offsets = np.searchsorted(sender_session, np.arange(n + 1))

    def offsets(array: np.ndarray) -> np.ndarray:
        return np.append(array, array[-1]).astype(np.int32)

    return SessionGraphs(
        node_offsets=offsets(node_offsets),
        node_items=(node_keys % span).astype(np.int32),
        node_clicks=np.bincount(node_of_click, minlength=len(node_keys)).astype(np.float32),
        edge_offsets=offsets(edge_offsets),
        edge_senders=(senders - starts).astype(np.int32),
        edge_receivers=receivers.astype(np.int32),
        edge_reciprocal=edge_keys[found] == backward if len(edge_keys) else np.zeros(0, bool),
        edge_in_weights=(1.0 / np.bincount(sinks)[sinks]).astype(np.float32),
        edge_out_weights=(1.0 / np.bincount(senders)[senders]).astype(np.float32),
        click_offsets=offsets(np.asarray(sessions.offsets)),
        click_nodes=local.astype(np.int32),
        targets=np.append(targets, 0).astype(np.int32),
        intents=intents,
    )


def pad_graphs(graphs: SessionGraphs, budget: Budget) -> SessionGraphs:
    """Pads the arrays of at most ``budget.sessions`` graphs to the budget's sizes, so that one program serves many."""
    sizes = {"node": budget.nodes, "edge": budget.edges, "click": budget.clicks}
    values = {}
    for name, array in graphs._asdict().items():
        if name == "intents":
            continue
        if name.endswith("offsets"):
            values[name] = np.pad(array, (0, budget.sessions + 2 - len(array)), mode="edge")
        else:
            values[name] = np.pad(array, (0, sizes.get(name.split("_")[0], budget.sessions + 1) - len(array)))
    intents = graphs.intents and graphs.intents._replace(
        offsets=np.pad(graphs.intents.offsets, (0, 2 * budget.sessions + 3 - len(graphs.intents.offsets)), mode="edge"),
        ids=np.pad(graphs.intents.ids, (0, budget.intents - len(graphs.intents.ids))),
    )
    return SessionGraphs(**values, intents=intents)


def pack(graphs: SessionGraphs, sessions: Int[Array, "B"], budget: Budget) -> SessionBatch:
    """Gathers sessions into one packed batch; runs inside jit.

    Args:
      graphs: device arrays.
      sessions: row numbers; ``graphs.n_sessions`` is the empty session.
      budget: sizes that the sessions must not exceed (see `batch_budget`).
    """
    n_node, node_graph, node_at, node_start = _ragged(graphs.node_offsets, sessions, budget.nodes)
    n_edge, edge_graph, edge_at, _ = _ragged(graphs.edge_offsets, sessions, budget.edges)
    n_click, click_graph, click_at, click_start = _ragged(graphs.click_offsets, sessions, budget.clicks)
    dummy = len(sessions)

    def node(local: Int[Array, "stored"], at: Int[Array, "rows"], graph: Int[Array, "rows"]) -> Int[Array, "rows"]:
        return jnp.where(graph < dummy, _take(local, at), 0) + node_start[graph]

    length = n_click[:-1]
    click_node = node(graphs.click_nodes, click_at, click_graph)
    last = jnp.clip(click_start[:-1] + length - 1, 0, budget.clicks - 1)
    positions = n_click[click_graph] - 1 - (jnp.arange(budget.clicks) - click_start[click_graph])
    return SessionBatch(
        graph=jraph.GraphsTuple(
            nodes=jnp.where(node_graph < dummy, _take(graphs.node_items, node_at), 0),
            edges=Transitions(
                *(
                    jnp.where(edge_graph < dummy, _take(feature, edge_at), 0).astype(feature.dtype)
                    for feature in (graphs.edge_reciprocal, graphs.edge_in_weights, graphs.edge_out_weights)
                )
            ),
            senders=node(graphs.edge_senders, edge_at, edge_graph),
            receivers=node(graphs.edge_receivers, edge_at, edge_graph),
            n_node=n_node,
            n_edge=n_edge,
            globals=None,
        ),
        node_session=node_graph,
        node_clicks=jnp.where(node_graph < dummy, _take(graphs.node_clicks, node_at), 0.0),
        click_node=click_node,
        click_session=click_graph,
        click_position=jnp.where(click_graph < dummy, positions, 0),
        length=length,
        last_node=jnp.where(length > 0, click_node[last], budget.nodes - 1),
        target=graphs.targets[sessions],
        rectangles=_rectangles(length, click_start[:-1], budget),
        intents=None if graphs.intents is None else _pack_intents(graphs.intents, sessions, budget.intents),
    )


def rectangle_sizes(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(rows, width) of rectangles for sessions of at most these lengths, longest first: few, with little waste."""
    sizes: list[tuple[int, int]] = []
    for length in lengths:
        rows, width = sizes[-1] if sizes else (0, length)
        if length < SIMILAR * width and width > NARROW:
            sizes.append((1, length))
        else:
            sizes[-1:] = [(rows + 1, width)]
    return sizes


def _rectangles(length: Int[Array, "B"], start: Int[Array, "B"], budget: Budget) -> tuple[Rectangle, ...]:
    longest_first = jnp.argsort(-length)
    found, taken = [], 0
    for rows, width in rectangle_sizes(budget.lengths or [budget.clicks // i for i in range(1, len(length) + 1)]):
        session = longest_first[taken : taken + rows]
        taken += rows
        place = jnp.arange(width)
        click = jnp.minimum(start[session, None] + place, budget.clicks - 1)
        found.append(Rectangle(session, click, place < length[session, None]))
    return tuple(found)


def _pack_intents(intents: IntentRows, sessions: Int[Array, "B"], total: int) -> BatchIntents:
    rows = jnp.stack([2 * sessions, 2 * sessions + 1], axis=1).reshape(-1)
    sizes, owner, at, _ = _ragged(intents.offsets, rows, total)
    ids = jnp.where(owner < len(rows), _take(intents.ids, at), 0)
    return BatchIntents(ids, owner, sizes[:-1].reshape(-1, 2), intents.embeddings)


def _ragged(offsets: Int[Array, "bounds"], rows: Int[Array, "B"], total: int) -> tuple[jax.Array, ...]:
    """Sizes [B + 1] with the dummy's last, and per element its owner, its place in the CSR array; starts [B + 1]."""
    sizes = offsets[rows + 1] - offsets[rows]
    starts = jnp.cumulative_sum(sizes, include_initial=True)
    sizes = jnp.append(sizes, total - starts[-1])
    owner = jnp.repeat(jnp.arange(len(sizes)), sizes, total_repeat_length=total)
    shift = jnp.append(offsets[rows], 0) - starts
    return sizes, owner, jnp.arange(total) + shift[owner], starts


def _take(values: Array, at: Int[Array, "rows"]) -> Array:
    """Gather whose padding rows (any place) read an arbitrary element; the caller masks them."""
    return values.at[at].get(mode="clip") if len(values) else jnp.zeros(len(at), values.dtype)
