"""Session graphs built once for all rows, without a Python loop, and packed into flat batches on the device."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Ragged:
    """Rows of different lengths, one after the other: ``offsets`` [rows + 1] and parallel ``fields`` [entries]."""

    def __init__(self, offsets: np.ndarray, fields: tuple[np.ndarray, ...], device: torch.device) -> None:
        self.host_sizes = np.diff(offsets)
        self.sizes = torch.from_numpy(self.host_sizes).to(device)
        self.starts = torch.from_numpy(offsets[:-1].copy()).to(device)
        self.fields = tuple(torch.from_numpy(f).to(device) for f in fields)

    def pick(self, host_rows: np.ndarray, rows: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Entries of the chosen rows.

        Returns:
          (first [B]: where each row's entries start in the pick, row [entries]: position in ``rows``, the fields).
        """
        total = int(self.host_sizes[host_rows].sum())  # on the host, so that a GPU is not waited for
        sizes = self.sizes.index_select(0, rows)
        first = sizes.cumsum(0) - sizes
        row = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), sizes, output_size=total)
        shift = self.starts.index_select(0, rows) - first
        source = torch.arange(total, device=rows.device) + shift.index_select(0, row)
        return first, row, [f.index_select(0, source) for f in self.fields]


@dataclass(frozen=True)
class DistinctItems:
    """Each row's distinct items (nodes) and where its clicks point."""

    items: np.ndarray  # int64 [nodes]
    counts: np.ndarray  # float32 [nodes], clicks on the node
    offsets: np.ndarray  # int64 [rows + 1], of nodes
    clicks: np.ndarray  # int64 [clicks], node of each click, counted from 0 over all rows
    row: np.ndarray  # int64 [clicks]

    @classmethod
    def of(cls, items: np.ndarray, offsets: np.ndarray) -> "DistinctItems":
        """From CSR sessions; nodes ascend by item id."""
        n_rows, width = len(offsets) - 1, int(items.max(initial=0)) + 1
        row = np.repeat(np.arange(n_rows), np.diff(offsets))
        keys, clicks, counts = np.unique(row * width + items, return_inverse=True, return_counts=True)
        node_offsets = np.concatenate([[0], np.cumsum(np.bincount(keys // width, minlength=n_rows))])
        return cls(keys % width, counts.astype(np.float32), node_offsets, clicks, row)

    def transitions(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct click transitions (from, to), as nodes counted over all rows, ascending by (from, to)."""
        same = self.row[1:] == self.row[:-1]
        keys = np.unique(self.clicks[:-1][same] * len(self.items) + self.clicks[1:][same])
        return keys // len(self.items), keys % len(self.items)

    def ragged_edges(
        self, ends: tuple[np.ndarray, np.ndarray], fields: tuple[np.ndarray, ...], device: torch.device
    ) -> Ragged:
        """Edges grouped by row, their ends counted from the row's first node."""
        row_of_node = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        row = row_of_node[ends[0]]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(self.offsets) - 1))])
        return Ragged(offsets, (ends[0] - self.offsets[row], ends[1] - self.offsets[row], *fields), device)


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
        self.nodes = Ragged(nodes.offsets, (nodes.items, nodes.counts), device)
        self.edges = nodes.ragged_edges((senders, receivers), (one_in, one_out), device)
        last = nodes.clicks[offsets[1:] - 1] - nodes.offsets[:-1]
        self.last = torch.from_numpy(last).to(device)

    def pack(self, host_rows: np.ndarray, rows: Tensor) -> SRGNNBatch:
        """One flat batch of the rows [B]."""
        first, session, (items, counts) = self.nodes.pick(host_rows, rows)
        _, edge_row, (senders, receivers, one_in, one_out) = self.edges.pick(host_rows, rows)
        shift = first.index_select(0, edge_row)
        last = first + self.last.index_select(0, rows)
        return SRGNNBatch(
            items, counts[:, None], session, last, senders + shift, receivers + shift, one_in[:, None], one_out[:, None]
        )


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
