"""Both models at the cost of the released code: padded sessions, dense graphs, loops in Python.

Written from the published descriptions. What is kept on purpose: every session is as wide as the longest of the data
set; a batch's graphs are rebuilt from its clicks each time; graphs are dense matrices; GCE-GNN compares all pairs of
positions in d dimensions and fetches the global neighbours of padding too.
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.pytorch_baseline.parameters import GCEGNNParameters, SRGNNParameters

SLOPE = 0.2
MASKED = -9e15


def pad(items: np.ndarray, offsets: np.ndarray, width: int, *, newest_first: bool = False) -> np.ndarray:
    """Sessions as one int64 matrix [rows, width], 0 where they end."""
    padded = np.zeros((len(offsets) - 1, width), np.int64)
    for row, (start, stop) in enumerate(itertools.pairwise(offsets)):
        session = items[start:stop]
        padded[row, : stop - start] = session[::-1] if newest_first else session
    return padded


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
        h = self.propagate(self.embedding(nodes), adjacency)
        h = torch.stack([h[i][alias[i]] for i in range(len(alias))])
        last = h[torch.arange(len(h)), mask.sum(1) - 1]
        query = self.linear_one(last)[:, None]
        alpha = self.linear_three(torch.sigmoid(query + self.linear_two(h)))
        s_global = (alpha * h * mask[:, :, None].float()).sum(1)
        return self.linear_transform(torch.cat([s_global, last], 1)) @ self.embedding.weight[1:].T

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


class GCEGNNSessions(Dataset):
    """Builds one session's tensors at a time, all as wide as the longest session of the data set."""

    def __init__(self, sessions: np.ndarray, targets: np.ndarray) -> None:
        self.sessions, self.targets = sessions, targets

    def __len__(self) -> int:
        return len(self.sessions)

    def __getitem__(self, row: int) -> list[Tensor]:
        """(alias [L], adjacency [L, L], nodes [L], mask [L], clicks [L], target), newest click first."""
        session = self.sessions[row]
        width, node = len(session), np.unique(session)
        nodes = node.tolist() + (width - len(node)) * [0]
        adjacency = np.zeros((width, width))
        for click, before in zip(session, [*session[1:], 0], strict=True):
            if click == 0:
                break
            u = np.where(node == click)[0][0]
            adjacency[u, u] = 1
            if before == 0:
                break
            v = np.where(node == before)[0][0]
            if u == v or adjacency[u, v] == 4:
                continue
            if adjacency[v, u] == 2:
                adjacency[u, v] = adjacency[v, u] = 4
            else:
                adjacency[u, v], adjacency[v, u] = 2, 3
        alias = [np.where(node == click)[0][0] for click in session]
        columns = (alias, adjacency, nodes, session > 0, session, self.targets[row])
        return [torch.tensor(column) for column in columns]


class ReleasedGCEGNN(GCEGNNParameters):
    """GCE-GNN on padded sessions."""

    neighbors: Tensor
    counts: Tensor

    def __init__(
        self, n_items: int, d: int, n_positions: int, neighbors: Tensor, counts: Tensor, dropout_global: float = 0.5
    ) -> None:
        super().__init__(n_items, d, n_positions)
        self.dropout_global = dropout_global
        self.register_buffer("neighbors", neighbors.long(), persistent=False)
        self.register_buffer("counts", counts.float(), persistent=False)

    def forward(self, alias: Tensor, adjacency: Tensor, nodes: Tensor, mask: Tensor, clicks: Tensor) -> Tensor:
        """Logits [B, n_items]; adjacency [B, L, L], the others [B, L]."""
        h = self.embedding(nodes)
        h_global = F.dropout(self.global_level(h, nodes, mask, clicks), self.dropout_global, self.training)
        h = self.local_level(h, adjacency) + h_global
        return self.read_out(torch.stack([h[i][alias[i]] for i in range(len(alias))]), mask)

    def local_level(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """Attention over all pairs of positions [B, L, d]."""
        size, width, d = h.shape
        pairs = h.repeat(1, 1, width).view(size, width * width, d) * h.repeat(1, width, 1)
        pairs = pairs.view(size, width, width, d)
        vectors = (self.local_agg.a_0, self.local_agg.a_1, self.local_agg.a_2, self.local_agg.a_3)
        logits = [F.leaky_relu((pairs @ a)[..., 0], SLOPE) for a in vectors]
        chosen = torch.full_like(logits[0], MASKED)
        for relation, values in enumerate(logits, 1):
            chosen = torch.where(adjacency == relation, values, chosen)
        return chosen.softmax(2) @ h

    def global_level(self, h: Tensor, nodes: Tensor, mask: Tensor, clicks: Tensor) -> Tensor:
        """Attention over the neighbours of every position, padding included [B, L, d]."""
        cell, (size, width, d) = self.agg_gcn_0, h.shape
        near = self.embedding(self.neighbors[nodes].view(size, -1)).view(size, width, -1, d)
        counts = self.counts[nodes]
        clicked = self.embedding(clicks) * mask[..., None].float()
        mean = (clicked.sum(1) / mask.float().sum(1, keepdim=True))[:, None].repeat(1, width, 1)
        session = mean[:, :, None].repeat(1, 1, near.shape[2], 1)
        hidden = F.leaky_relu(torch.cat([session * near, counts[..., None]], 3) @ cell.w_1, SLOPE)
        alpha = (hidden @ cell.w_2)[..., 0].softmax(2)[..., None]
        return torch.relu(torch.cat([h, (alpha * near).sum(2)], 2) @ cell.w_3)

    def read_out(self, h: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, n_items] from the clicks' vectors [B, L, d]."""
        size, width, _ = h.shape
        weight = mask.float()[..., None]
        positions = self.pos_embedding.weight[:width][None].repeat(size, 1, 1)
        mean = ((h * weight).sum(1) / weight.sum(1))[:, None].repeat(1, width, 1)
        hidden = torch.tanh(torch.cat([positions, h], 2) @ self.w_1)
        beta = torch.sigmoid(self.glu1(hidden) + self.glu2(mean)) @ self.w_2 * weight
        return (beta * h).sum(1) @ self.embedding.weight[1:].T
