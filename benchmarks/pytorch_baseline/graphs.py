"""Session graphs built once for all rows, without a Python loop, and packed into flat batches on the device."""

from dataclasses import dataclass

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

    @property
    def last(self) -> np.ndarray:
        """Node of each row's last click, counted from the row's first node, int64 [rows]."""
        ends = np.append(np.flatnonzero(np.diff(self.row)), len(self.row) - 1)
        return self.clicks[ends] - self.offsets[:-1]

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


class GraphRows:
    """Nodes and edges of all rows, to be packed into one flat graph; fields of edges begin with their two ends."""

    def __init__(self, nodes: Ragged, edges: Ragged, last: np.ndarray, device: torch.device) -> None:
        self.nodes, self.edges = nodes, edges
        self.last = torch.from_numpy(last).to(device)

    def pick(self, host_rows: np.ndarray, rows: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
        """The chosen rows' graphs, nodes counted from 0 over all of them.

        Returns:
          (row of each node: position in ``rows``, fields of nodes, fields of edges, last node of each row [B]).
        """
        first, row, of_nodes = self.nodes.pick(host_rows, rows)
        _, edge_row, (starts, ends, *others) = self.edges.pick(host_rows, rows)
        shift = first.index_select(0, edge_row)
        return row, of_nodes, [starts + shift, ends + shift, *others], first + self.last.index_select(0, rows)
