"""SR-GNN (Wu et al. 2019): released with padded sessions and dense graphs, tuned on packed ones."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.pytorch_baseline.graphs import DistinctItems, GraphRows, Ragged
from benchmarks.pytorch_baseline.layers import longest, pad, padding_mask, reset, score_items, sum_by
from dmsrec_jax.data import Split


class GatedCellParameters(nn.Module):
    """SR-GNN's propagation step (Wu et al. 2019, eq. 1-5)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.w_ih = nn.Parameter(torch.empty(3 * d, 2 * d))
        self.w_hh = nn.Parameter(torch.empty(3 * d, d))
        self.b_ih = nn.Parameter(torch.empty(3 * d))
        self.b_hh = nn.Parameter(torch.empty(3 * d))
        self.b_iah = nn.Parameter(torch.empty(d))
        self.b_oah = nn.Parameter(torch.empty(d))
        self.linear_edge_in = nn.Linear(d, d)
        self.linear_edge_out = nn.Linear(d, d)


class SRGNNParameters(nn.Module):
    """SR-GNN (Wu et al. 2019): item table, gated cell, soft-attention readout (eq. 6-7)."""

    def __init__(self, n_items: int, d: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_items + 1, d)
        self.gnn = GatedCellParameters(d)
        self.linear_one = nn.Linear(d, d)
        self.linear_two = nn.Linear(d, d)
        self.linear_three = nn.Linear(d, 1, bias=False)
        self.linear_transform = nn.Linear(2 * d, d)
        reset(self, d)


class SRGNNSessions:
    """One split, padded to its longest session; a batch's graphs are built anew each time."""

    def __init__(self, split: Split) -> None:
        self.sessions = pad(split.items, split.offsets, longest(split))
        self.labels = np.array(split.targets, np.int64) - 1

    def batches(self, parts: Iterable[np.ndarray]) -> Iterator[list[Tensor]]:
        """What `ReleasedSRGNN` takes, and labels, for each of the ``parts`` (row numbers)."""
        for rows in parts:
            mask = torch.from_numpy((self.sessions[rows] > 0).astype(np.int64))
            yield [*srgnn_graphs(self.sessions[rows]), mask, torch.from_numpy(self.labels[rows])]


def srgnn_graphs(sessions: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Session graphs of a padded batch [B, L], one after the other.

    Returns:
      (alias [B, L]: node of each click, adjacency [B, n, 2n]: in beside out, rows normalised, nodes [B, n]), n the
      most distinct values (padding among them) of a session in the batch.
    """
    n = max(len(np.unique(session)) for session in sessions)
    aliases, adjacencies, nodes = [], [], []
    for session in sessions:
        node = np.unique(session)
        nodes.append(node.tolist() + (n - len(node)) * [0])
        edges = np.zeros((n, n))
        for click, following in itertools.pairwise(session):
            if following == 0:
                break
            edges[np.where(node == click)[0][0], np.where(node == following)[0][0]] = 1
        predecessors, successors = edges.sum(0), edges.sum(1)
        predecessors[predecessors == 0] = 1
        successors[successors == 0] = 1
        adjacencies.append(np.concatenate([edges / predecessors, edges.T / successors]).T)
        aliases.append([np.where(node == click)[0][0] for click in session])
    # From lists of arrays, entry by entry, as released: on a CPU this takes longer than the model.
    return torch.Tensor(aliases).long(), torch.Tensor(adjacencies), torch.Tensor(nodes).long()


class ReleasedSRGNN(SRGNNParameters):
    """SR-GNN on padded sessions."""

    def forward(self, alias: Tensor, adjacency: Tensor, nodes: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, n_items]; alias and mask [B, L], adjacency [B, n, 2n], nodes [B, n]."""
        h = self.clicks(alias, adjacency, nodes)
        last, alpha = self.attention(h, mask)
        s_global = (alpha * h * mask[:, :, None].float()).sum(1)
        return self.linear_transform(torch.cat([s_global, last], 1)) @ self.embedding.weight[1:].T

    def clicks(self, alias: Tensor, adjacency: Tensor, nodes: Tensor) -> Tensor:
        """Vectors of the clicks [B, L, d], padding among them."""
        h = self.propagate(self.embedding(nodes), adjacency)
        return torch.stack([h[i][alias[i]] for i in range(len(alias))])

    def attention(self, h: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The last click [B, d], and the logits of all clicks against it [B, L, 1]."""
        last = h[torch.arange(len(h)), mask.sum(1) - 1]
        query = self.linear_one(last)[:, None]
        return last, self.linear_three(torch.sigmoid(query + self.linear_two(h)))

    def propagate(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """One gated step [B, n, d]."""
        cell, n = self.gnn, adjacency.shape[1]
        message_in = adjacency[:, :, :n] @ cell.linear_edge_in(h) + cell.b_iah
        message_out = adjacency[:, :, n:] @ cell.linear_edge_out(h) + cell.b_oah
        messages = torch.cat([message_in, message_out], 2)
        i_reset, i_update, i_new = F.linear(messages, cell.w_ih, cell.b_ih).chunk(3, 2)
        h_reset, h_update, h_new = F.linear(h, cell.w_hh, cell.b_hh).chunk(3, 2)
        update = torch.sigmoid(i_update + h_update)
        new = torch.tanh(i_new + torch.sigmoid(i_reset + h_reset) * h_new)
        return new + update * (h - new)


class SRGNNBatch(NamedTuple):
    """Packed sessions: N nodes, M transitions, B sessions."""

    items: Tensor  # [N]
    counts: Tensor  # [N, 1]
    session: Tensor  # [N]
    last: Tensor  # [B], node of the last click
    senders: Tensor  # [M]
    receivers: Tensor  # [M]
    in_weight: Tensor  # [M, 1], 1 / predecessors of the receiver
    out_weight: Tensor  # [M, 1], 1 / successors of the sender


class SRGNNGraphs:
    """All session graphs of one split, for SR-GNN."""

    def __init__(self, items: np.ndarray, offsets: np.ndarray, device: torch.device) -> None:
        nodes = DistinctItems.of(items, offsets)
        senders, receivers = nodes.transitions()
        one_in = (1 / np.bincount(receivers, minlength=1)[receivers]).astype(np.float32)
        one_out = (1 / np.bincount(senders, minlength=1)[senders]).astype(np.float32)
        edges = nodes.ragged_edges((senders, receivers), (one_in, one_out), device)
        self.rows = GraphRows(Ragged(nodes.offsets, (nodes.items, nodes.counts), device), edges, nodes.last, device)

    def pack(self, host_rows: np.ndarray, rows: Tensor) -> SRGNNBatch:
        """One flat batch of the rows [B]."""
        session, (items, counts), (senders, receivers, one_in, one_out), last = self.rows.pick(host_rows, rows)
        return SRGNNBatch(items, counts[:, None], session, last, senders, receivers, one_in[:, None], one_out[:, None])


class TunedSRGNN(SRGNNParameters):
    """SR-GNN on packed sessions."""

    mask: Tensor

    def __init__(self, n_items: int, d: int) -> None:
        super().__init__(n_items, d)
        self.register_buffer("mask", padding_mask(n_items), persistent=False)

    def forward(self, batch: SRGNNBatch) -> Tensor:
        """Logits [B, n_items + 1], column = item id."""
        h = self.propagate(self.embedding.weight.index_select(0, batch.items), batch)
        last = h.index_select(0, batch.last)
        alpha = self.attention(h, batch.session, last)
        # An item clicked twice has one vector, so the sum over clicks runs over nodes.
        s_global = sum_by(alpha * batch.counts * h, batch.session, len(batch.last))
        vectors = self.linear_transform(torch.cat([s_global, last], 1))
        return score_items(vectors, self.embedding.weight, self.mask)

    def attention(self, h: Tensor, session: Tensor, last: Tensor) -> Tensor:
        """Logits [rows, 1] of rows [rows, d] against their session's last click [B, d]."""
        query = self.linear_one(last).index_select(0, session)
        return F.linear(torch.sigmoid(query + self.linear_two(h)), self.linear_three.weight)

    def propagate(self, h: Tensor, batch: SRGNNBatch) -> Tensor:
        """One gated step [N, d]; torch's cell has the same gates, and is one kernel on a GPU."""
        cell = self.gnn
        message_in = cell.linear_edge_in(h).index_select(0, batch.senders) * batch.in_weight
        message_out = cell.linear_edge_out(h).index_select(0, batch.receivers) * batch.out_weight
        messages = torch.cat(
            [
                sum_by(message_in, batch.receivers, len(h)) + cell.b_iah,
                sum_by(message_out, batch.senders, len(h)) + cell.b_oah,
            ],
            1,
        )
        return torch.gru_cell(messages, h, cell.w_ih, cell.w_hh, cell.b_ih, cell.b_hh)
