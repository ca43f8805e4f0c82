"""GCE-GNN with one hop (Wang et al. 2020): released with padded sessions and dense graphs, tuned on packed ones."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.pytorch_baseline.graphs import DistinctItems, Ragged
from benchmarks.pytorch_baseline.layers import exp_by, loaded, longest, pad, padding_mask, reset, score_items, sum_by
from dmsrec_jax.data import SessionDataset, Split
from dmsrec_jax.item_graph import build_item_graph

SLOPE = 0.2
MASKED = -9e15


class LocalParameters(nn.Module):
    """GCE-GNN's session-level attention (Wang et al. 2020, eq. 6-8): one vector per relation."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.a_0, self.a_1, self.a_2, self.a_3 = (nn.Parameter(torch.empty(d, 1)) for _ in range(4))

    @property
    def relations(self) -> torch.Tensor:
        """The four vectors side by side, [d, 4]."""
        return torch.cat([self.a_0, self.a_1, self.a_2, self.a_3], 1)


class GlobalParameters(nn.Module):
    """GCE-GNN's global-level attention (eq. 1-5)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.w_1 = nn.Parameter(torch.empty(d + 1, d))
        self.w_2 = nn.Parameter(torch.empty(d, 1))
        self.w_3 = nn.Parameter(torch.empty(2 * d, d))


class GCEGNNParameters(nn.Module):
    """GCE-GNN with one hop (Wang et al. 2020): item and position tables, two attentions, readout (eq. 9-14)."""

    def __init__(self, n_items: int, d: int, n_positions: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_items + 1, d)
        self.pos_embedding = nn.Embedding(n_positions, d)
        self.local_agg = LocalParameters(d)
        self.agg_gcn_0 = GlobalParameters(d)
        self.w_1 = nn.Parameter(torch.empty(2 * d, d))
        self.w_2 = nn.Parameter(torch.empty(d, 1))
        self.glu1 = nn.Linear(d, d)
        self.glu2 = nn.Linear(d, d, bias=False)
        reset(self, d)


class GCEGNNSessions(Dataset):
    """One split, padded to its longest session; builds one session's tensors at a time, newest click first."""

    def __init__(self, split: Split) -> None:
        self.sessions = pad(split.items, split.offsets, longest(split), newest_first=True)
        self.labels = np.array(split.targets, np.int64) - 1

    def batches(self, parts: Iterable[np.ndarray]) -> Iterator[list[Tensor]]:
        """What `ReleasedGCEGNN` takes, and labels, for each of the ``parts`` (row numbers)."""
        return loaded(self, parts)

    def __len__(self) -> int:
        return len(self.sessions)

    def __getitem__(self, row: int) -> list[Tensor]:
        """(alias [L], adjacency [L, L], nodes [L], mask [L], clicks [L], label)."""
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
        columns = (alias, adjacency, nodes, session > 0, session, self.labels[row])
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


class GCEGNNBatch(NamedTuple):
    """Packed sessions: N nodes, M typed edges, C clicks, B sessions."""

    items: Tensor  # [N]
    share: Tensor  # [N, 1], clicks on the node / clicks of its session
    session: Tensor  # [N]
    rows: Tensor  # [M], node that attends
    columns: Tensor  # [M], node attended to
    relation: Tensor  # [M], 0 self, 1 column was clicked before row, 2 after, 3 both
    click_node: Tensor  # [C]
    click_session: Tensor  # [C]
    click_position: Tensor  # [C], 0 = last click
    length: Tensor  # [B, 1]


class GCEGNNGraphs:
    """All session graphs of one split, for GCE-GNN."""

    def __init__(self, items: np.ndarray, offsets: np.ndarray, device: torch.device) -> None:
        nodes = DistinctItems.of(items, offsets)
        n_nodes, lengths = len(nodes.items), np.diff(offsets)
        before, after = nodes.transitions()
        loops = before == after
        before, after = before[~loops], after[~loops]
        both = np.isin(after * n_nodes + before, before * n_nodes + after)
        ends = np.concatenate(
            [
                [np.arange(n_nodes), np.arange(n_nodes), np.zeros(n_nodes, int)],
                [after, before, np.where(both, 3, 1)],
                [before[~both], after[~both], np.full((~both).sum(), 2)],
            ],
            axis=1,
        )
        rows, columns, relation = ends[:, np.argsort(ends[0], kind="stable")]
        share = nodes.counts / np.repeat(lengths, np.diff(nodes.offsets)).astype(np.float32)
        position = np.repeat(offsets[1:], lengths) - 1 - np.arange(len(items))
        self.nodes = Ragged(nodes.offsets, (nodes.items, share), device)
        self.edges = nodes.ragged_edges((rows, columns), (relation,), device)
        local = nodes.clicks - nodes.offsets[nodes.row]
        self.clicks = Ragged(offsets, (local, position), device)

    def pack(self, host_rows: np.ndarray, rows: Tensor) -> GCEGNNBatch:
        """One flat batch of the rows [B]."""
        first, session, (items, share) = self.nodes.pick(host_rows, rows)
        _, edge_session, (ends, columns, relation) = self.edges.pick(host_rows, rows)
        _, click_session, (click_node, position) = self.clicks.pick(host_rows, rows)
        shift = first.index_select(0, edge_session)
        return GCEGNNBatch(
            items,
            share[:, None],
            session,
            ends + shift,
            columns + shift,
            relation,
            click_node + first.index_select(0, click_session),
            click_session,
            position,
            self.clicks.sizes.index_select(0, rows)[:, None].float(),
        )


class TunedGCEGNN(GCEGNNParameters):
    """GCE-GNN on packed sessions; global neighbours of distinct items only."""

    neighbors: Tensor
    counts: Tensor
    mask: Tensor

    def __init__(
        self,
        n_items: int,
        d: int,
        n_positions: int,
        neighbors: Tensor,
        counts: Tensor,
        dropout_global: float = 0.5,
    ) -> None:
        super().__init__(n_items, d, n_positions)
        self.dropout_global = dropout_global
        self.register_buffer("neighbors", neighbors.long(), persistent=False)
        self.register_buffer("counts", counts.float(), persistent=False)
        self.register_buffer("mask", padding_mask(n_items), persistent=False)

    def forward(self, batch: GCEGNNBatch) -> Tensor:
        """Logits [B, n_items + 1], column = item id."""
        h = self.embedding.weight.index_select(0, batch.items)
        h_global = F.dropout(self.global_level(h, batch), self.dropout_global, self.training)
        vectors = self.read_out(self.local_level(h, batch) + h_global, batch)
        return score_items(vectors, self.embedding.weight, self.mask)

    def local_level(self, h: Tensor, batch: GCEGNNBatch) -> Tensor:
        """Attention over typed session edges [N, d]."""
        neighbor = h.index_select(0, batch.columns)
        by_relation = (h.index_select(0, batch.rows) * neighbor) @ self.local_agg.relations
        logits = F.leaky_relu(by_relation.gather(1, batch.relation[:, None]), SLOPE)
        weight = exp_by(logits, batch.rows, len(h))
        return sum_by(weight * neighbor, batch.rows, len(h)) / sum_by(weight, batch.rows, len(h))

    def global_level(self, h: Tensor, batch: GCEGNNBatch) -> Tensor:
        """Session-aware attention over the global neighbours [N, d]."""
        cell, (n, d) = self.agg_gcn_0, h.shape
        item_neighbors = self.neighbors.index_select(0, batch.items)
        near = self.embedding.weight.index_select(0, item_neighbors.flatten()).view(n, -1, d)
        mean = self.session_mean(h, batch).index_select(0, batch.session)
        counts = self.counts.index_select(0, batch.items).view(-1, 1)
        hidden = (mean[:, None] * near).flatten(0, 1) @ cell.w_1[:d] + counts * cell.w_1[d]
        logits = (F.leaky_relu(hidden, SLOPE) * cell.w_2[:, 0]).sum(1).view(n, -1)
        attended = (logits.softmax(1)[:, :, None] * near).sum(1)
        return torch.relu(torch.cat([h, attended], 1) @ cell.w_3)

    def read_out(self, h: Tensor, batch: GCEGNNBatch) -> Tensor:
        """Session vectors [B, d]; the position product is taken once per position, the item product per node."""
        d = h.shape[1]
        by_position = self.pos_embedding.weight @ self.w_1[:d]
        by_item = (h @ self.w_1[d:]).index_select(0, batch.click_node)
        hidden = torch.tanh(by_position.index_select(0, batch.click_position) + by_item)
        mean = self.glu2(self.session_mean(h, batch)).index_select(0, batch.click_session)
        beta = torch.sigmoid(self.glu1(hidden) + mean) @ self.w_2
        return sum_by(beta * h.index_select(0, batch.click_node), batch.click_session, len(batch.length))

    @staticmethod
    def session_mean(h: Tensor, batch: GCEGNNBatch) -> Tensor:
        """Mean over a session's clicks [B, d]."""
        return sum_by(batch.share * h, batch.session, len(batch.length))


def arguments(dataset: SessionDataset) -> tuple[int, Tensor, Tensor]:
    """What the models take beside sizes: positions, global neighbours and counts [n_items + 1, 12]."""
    neighbors, counts = build_item_graph(dataset.sessions, dataset.n_items)
    return longest(dataset.train, dataset.test), torch.from_numpy(neighbors), torch.from_numpy(counts)
