"""Both models on flat packed batches: no padding, and each product taken over as few rows as the equations allow."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.pytorch_baseline.graphs import GCEGNNBatch, SRGNNBatch
from benchmarks.pytorch_baseline.parameters import GCEGNNParameters, SRGNNParameters

SLOPE = 0.2


def sum_by(values: Tensor, ids: Tensor, n: int) -> Tensor:
    """Sums rows of ``values`` [rows, …] by ``ids`` [rows]: [n, …]."""
    return values.new_zeros(n, *values.shape[1:]).index_add(0, ids, values)


def score_items(vectors: Tensor, table: Tensor, mask: Tensor) -> Tensor:
    """Logits [B, n_items + 1]. The mask is -inf for item 0: slicing it off would copy the table's gradient."""
    return F.linear(vectors, table, mask)


def padding_mask(n_items: int) -> Tensor:
    """Zeros [n_items + 1], -inf at item 0."""
    return torch.zeros(n_items + 1).index_fill(0, torch.tensor(0), float("-inf"))


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
        query = self.linear_one(last).index_select(0, batch.session)
        alpha = F.linear(torch.sigmoid(query + self.linear_two(h)), self.linear_three.weight)
        # An item clicked twice has one vector, so the sum over clicks runs over nodes.
        s_global = sum_by(alpha * batch.counts * h, batch.session, len(batch.last))
        vectors = self.linear_transform(torch.cat([s_global, last], 1))
        return score_items(vectors, self.embedding.weight, self.mask)

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
        peak = torch.full_like(h[:, 0], float("-inf")).scatter_reduce(0, batch.rows, logits.detach()[:, 0], "amax")
        weight = torch.exp(logits - peak.index_select(0, batch.rows)[:, None])
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
