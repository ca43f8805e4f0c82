"""SHARE (Wang et al. 2021), window 1: hyperedges are clicks and pairs of consecutive clicks."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.pytorch_baseline.graphs import DistinctItems, GraphRows, Ragged
from benchmarks.pytorch_baseline.layers import padding_mask, reset, score_items, softmax_by, sum_by
from dmsrec_jax.data import Split

MASKED = -1e9


class AttentionParameters(nn.Module):
    """One round of attention between nodes and hyperedges."""

    def __init__(self, d: int, *, maps_values: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d, d)) if maps_values else None
        self.weight2 = nn.Parameter(torch.empty(d, d))
        self.weight3 = nn.Parameter(torch.empty(d, d))
        self.word_context = nn.Embedding(1, d)


class TransformerParameters(nn.Module):
    """One layer with one head."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.slf_attn, self.pos_ffn = nn.Module(), nn.Module()
        for part, names, bias in ((self.slf_attn, "w_qs w_ks w_vs fc", False), (self.pos_ffn, "w_1 w_2", True)):
            for name in names.split():
                part.add_module(name, nn.Linear(d, d, bias=bias))
            part.add_module("layer_norm", nn.LayerNorm(d, eps=1e-6))


class SHAREParameters(nn.Module):
    """Item table, two rounds of hypergraph attention, transformer layer, last norm."""

    def __init__(self, n_items: int, d: int, dropout: float = 0.3) -> None:
        super().__init__()
        self.dropout = dropout
        self.embedding = nn.Embedding(n_items + 1, d)
        self.hgnn: Any = nn.Module()
        self.hgnn.add_module("gat1", AttentionParameters(d, maps_values=False))
        self.hgnn.add_module("gat2", AttentionParameters(d, maps_values=True))
        self.layer_stack: Any = nn.ModuleList([TransformerParameters(d)])
        self.layer_norm = nn.LayerNorm(d, eps=1e-6)
        reset(self, d)

    def drop(self, x: Tensor) -> Tensor:
        """Dropout in training, everywhere at the same rate."""
        return F.dropout(x, self.dropout, self.training)

    def feed_forward(self, a: Tensor) -> Tensor:
        """The transformer's second half, with its residual."""
        layer = self.layer_stack[0].pos_ffn
        return a + self.drop(layer.w_2(torch.relu(layer.w_1(layer.layer_norm(a)))))


class SHARESessions:
    """One split; a batch is padded to its own longest session, its hypergraphs are built anew each time."""

    def __init__(self, split: Split) -> None:
        self.sessions = [split.items[a:b].tolist() for a, b in itertools.pairwise(split.offsets)]
        self.labels = np.array(split.targets, np.int64) - 1

    def batches(self, parts: Iterable[np.ndarray]) -> Iterator[list[Tensor]]:
        """What `ReleasedSHARE` takes, and labels, for each of the ``parts`` (row numbers)."""
        for rows in parts:
            yield [*hypergraphs([self.sessions[row] for row in rows]), torch.from_numpy(self.labels[rows])]


def hypergraphs(sessions: list[list[int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hypergraphs of a batch, one after the other.

    Returns:
      (alias [B, L]: node of each click, mask [B, L], both with the last click in the last column, incidence [B, E, n]
      of hyperedges and nodes, nodes [B, n]).
    """
    width, n = max(map(len, sessions)), max(len(set(session)) for session in sessions)
    aliases, masks, incidences, nodes = [], [], [], []
    for session in sessions:
        node = list(set(session))
        place = {item: i for i, item in enumerate(node)}
        clicks = [place[item] for item in session]
        edges = [*([click] for click in clicks), *map(list, itertools.pairwise(clicks))]
        incidence = np.zeros((2 * width - 1, n))
        for row, edge in enumerate(edges):
            incidence[row, edge] = 1
        missing = [0] * (width - len(session))
        nodes.append(node + [0] * (n - len(node)))
        aliases.append(missing + clicks)
        masks.append(missing + [1] * len(session))
        incidences.append(incidence)
    # From lists, entry by entry, as released.
    alias, mask, places = (torch.Tensor(column).long() for column in (aliases, masks, nodes))
    return alias, mask, torch.Tensor(incidences), places


class ReleasedSHARE(SHAREParameters):
    """SHARE on padded sessions, with dense incidence."""

    def forward(self, alias: Tensor, mask: Tensor, incidence: Tensor, nodes: Tensor) -> Tensor:
        """Logits [B, n_items]; see `hypergraphs`."""
        x = self.embedding(nodes)
        h = x
        for layer in (self.hgnn.gat1, self.hgnn.gat2):
            h = self.drop(self.hypergraph(layer, h, incidence)) + x
        u = self.transform(torch.stack([h[i][alias[i]] for i in range(len(alias))]), mask)[:, -1]
        return self.layer_norm(u) @ self.embedding.weight[1:].T

    def hypergraph(self, layer: AttentionParameters, h: Tensor, incidence: Tensor) -> Tensor:
        """Nodes [B, n, d] to hyperedges [B, E, d] and back."""
        keys = h @ layer.weight2
        values = h if layer.weight is None else h @ layer.weight
        context = layer.word_context.weight[None].repeat(*incidence.shape[:2], 1)
        edges = self.attend(context, keys, values, incidence)
        return self.attend(keys, edges @ layer.weight3, edges, incidence.transpose(1, 2))

    def transform(self, h: Tensor, mask: Tensor) -> Tensor:
        """The transformer layer, all clicks to all [B, L, d]."""
        layer = self.layer_stack[0].slf_attn
        attended = self.attend(layer.w_qs(layer.layer_norm(h)), layer.w_ks(h), layer.w_vs(h), mask[:, None])
        return self.feed_forward(h + self.drop(layer.fc(attended)))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Scaled dot-product attention."""
        logits = (queries / queries.shape[2] ** 0.5) @ keys.transpose(1, 2)
        return self.drop(logits.masked_fill(mask == 0, MASKED).softmax(2)) @ values


class SHAREBatch(NamedTuple):
    """Packed sessions: N nodes, P pairs of consecutive clicks, B sessions."""

    items: Tensor  # [N]
    counts: Tensor  # [N, 1]
    session: Tensor  # [N]
    last: Tensor  # [B], node of the last click
    earlier: Tensor  # [P]
    later: Tensor  # [P]


class SHAREGraphs:
    """All hypergraphs of one split. A click alone is an edge of its node only, as many alike as the node has clicks."""

    def __init__(self, items: np.ndarray, offsets: np.ndarray, device: torch.device) -> None:
        nodes = DistinctItems.of(items, offsets)
        local = nodes.clicks - nodes.offsets[nodes.row]
        inside = np.flatnonzero(nodes.row[1:] == nodes.row[:-1])
        pairs = Ragged(offsets - np.arange(len(offsets)), (local[inside], local[inside + 1]), device)
        self.rows = GraphRows(Ragged(nodes.offsets, (nodes.items, nodes.counts), device), pairs, nodes.last, device)

    def pack(self, host_rows: np.ndarray, rows: Tensor) -> SHAREBatch:
        """One flat batch of the rows [B]."""
        session, (items, counts), (earlier, later), last = self.rows.pick(host_rows, rows)
        return SHAREBatch(items, counts[:, None], session, last, earlier, later)


class TunedSHARE(SHAREParameters):
    """SHARE on packed sessions. Clicks of a node are alike to it, as it knows no positions."""

    mask: Tensor

    def __init__(self, n_items: int, d: int) -> None:
        super().__init__(n_items, d)
        self.register_buffer("mask", padding_mask(n_items), persistent=False)

    def forward(self, batch: SHAREBatch) -> Tensor:
        """Logits [B, n_items + 1], column = item id."""
        x = self.embedding.weight.index_select(0, batch.items)
        h = x
        for layer in (self.hgnn.gat1, self.hgnn.gat2):
            h = self.drop(self.hypergraph(layer, h, batch)) + x
        return score_items(self.layer_norm(self.read_out(h, batch)), self.embedding.weight, self.mask)

    def hypergraph(self, layer: AttentionParameters, h: Tensor, batch: SHAREBatch) -> Tensor:
        """Nodes [N, d] to hyperedges and back. Keys meet one vector, then edges: its maps are multiplied first."""
        (n, d), earlier, later = h.shape, batch.earlier, batch.later
        maps = layer.weight2 @ torch.cat([layer.weight3, layer.word_context.weight]).T * d**-0.5
        queries, logits = (h @ maps).split([d, 1], 1)
        values = h if layer.weight is None else h @ layer.weight
        toward = torch.sigmoid(logits.index_select(0, earlier) - logits.index_select(0, later))  # a softmax over two
        alone = self.drop(torch.ones_like(logits)) * values
        of_later = self.drop(1 - toward) * values.index_select(0, later)
        pairs = self.drop(toward) * values.index_select(0, earlier) + of_later

        # Rows of the incidence: nodes with their lone clicks, pairs with their earlier and their later node.
        to_earlier = (queries.index_select(0, earlier) * pairs).sum(1, keepdim=True)
        to_later = (queries.index_select(0, later) * pairs).sum(1, keepdim=True)
        ends = torch.cat([torch.arange(n, device=h.device), earlier, later])
        logits = torch.cat([(queries * alone).sum(1, keepdim=True), to_earlier, to_later])
        times = torch.cat([batch.counts, torch.ones_like(toward), (earlier != later)[:, None].float()])
        beta = self.drop(softmax_by(logits, ends, n, times))  # a pair of an item with itself holds it once
        return sum_by(beta * torch.cat([alone, pairs, pairs]), ends, n)

    def read_out(self, h: Tensor, batch: SHAREBatch) -> Tensor:
        """The last click's output of the transformer layer [B, d]; keys and values are mapped on the query's side."""
        layer, n = self.layer_stack[0].slf_attn, len(batch.last)
        last = h.index_select(0, batch.last)
        queries = layer.w_qs(layer.layer_norm(last)) @ layer.w_ks.weight * h.shape[1] ** -0.5
        logits = (queries.index_select(0, batch.session) * h).sum(1, keepdim=True)
        gamma = self.drop(softmax_by(logits, batch.session, n, batch.counts))
        attended = layer.w_vs(sum_by(gamma * h, batch.session, n))
        return self.feed_forward(last + self.drop(layer.fc(attended)))
