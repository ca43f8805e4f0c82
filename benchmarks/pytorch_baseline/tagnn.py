"""TAGNN (Yu et al. 2020): SR-GNN whose session vector gains, for each item, what the session holds for that item."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.pytorch_baseline.layers import reset, score_items, softmax_by, sum_by
from benchmarks.pytorch_baseline.srgnn import (
    ReleasedSRGNN,
    SRGNNBatch,
    SRGNNGraphs,
    SRGNNParameters,
    TunedSRGNN,
)


class TAGNNParameters(SRGNNParameters):
    """SR-GNN's, and the map of clicks that items attend to."""

    def __init__(self, n_items: int, d: int) -> None:
        super().__init__(n_items, d)
        self.linear_t = nn.Linear(d, d, bias=False)
        reset(self, d)


class ReleasedTAGNN(ReleasedSRGNN, TAGNNParameters):
    """TAGNN on padded sessions: a session vector for each item, [B, n_items, d]. Both softmaxes count padding."""

    def forward(self, alias: Tensor, adjacency: Tensor, nodes: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, n_items]; see `ReleasedSRGNN`."""
        h, real = self.clicks(alias, adjacency, nodes), mask[:, :, None].float()
        last, alpha = self.attention(h, mask)
        s_global = (alpha.softmax(1) * h * real).sum(1)
        vectors = self.linear_transform(torch.cat([s_global, last], 1))
        h, items = h * real, self.embedding.weight[1:]
        beta = (items @ self.linear_t(h).transpose(1, 2)).softmax(2)
        return ((vectors[:, None] + beta @ h) * items).sum(2)


class TAGNNBatch(NamedTuple):
    """Packed sessions, and their nodes once more by groups of sessions of the same size: a softmax over
    clicks is dense there. R places in all."""

    graph: SRGNNBatch
    shapes: list[tuple[int, int]]  # sessions x places of each group
    places: Tensor  # [R], node at each place, N for padding
    clicks: Tensor  # [R, 1], that a place stands for
    order: Tensor  # [B], sessions as they stand in the groups
    missing: Tensor | None  # [B, 1], clicks by which a session is shorter than the padding

    @property
    def items(self) -> Tensor:
        return self.graph.items

    @property
    def session(self) -> Tensor:
        return self.graph.session


class TAGNNGraphs(SRGNNGraphs):
    """All session graphs of one split, for TAGNN."""

    def __init__(
        self, items: np.ndarray, offsets: np.ndarray, device: torch.device, padding: int | None = None
    ) -> None:
        """With ``padding`` each session counts as many clicks, as released: those it lacks have one place more."""
        super().__init__(items, offsets, device)
        self.host_missing = None if padding is None else padding - np.diff(offsets)

    def pack(self, host_rows: np.ndarray, rows: Tensor) -> TAGNNBatch:  # type: ignore[override]
        """One flat batch of the rows [B]."""
        graph, sizes = super().pack(host_rows, rows), self.rows.nodes.host_sizes[host_rows]
        first, order, nothing = np.cumsum(sizes) - sizes, np.argsort(sizes, kind="stable"), sizes.sum()
        missing = None if self.host_missing is None else self.host_missing[host_rows].astype(np.float32)
        places, padding = [], []
        for group in np.split(order, np.flatnonzero(np.diff(sizes[order])) + 1):
            nodes = first[group, None] + np.arange(sizes[group[0]])
            if missing is not None:
                padding.append(np.pad(missing[group, None], ((0, 0), (nodes.shape[1], 0))))
                nodes = np.pad(nodes, ((0, 0), (0, 1)), constant_values=nothing)
            places.append(nodes)

        def to_device(arrays: list[np.ndarray]) -> Tensor:
            flat = np.concatenate([array.ravel() for array in arrays])
            return torch.from_numpy(flat).to(rows.device, non_blocking=True)

        at_places = to_device(places)
        clicks = torch.cat([graph.counts, graph.counts.new_zeros(1, 1)]).index_select(0, at_places)
        shapes = [group.shape for group in places]
        if missing is None:
            return TAGNNBatch(graph, shapes, at_places, clicks, to_device([order]), None)
        clicks = clicks + to_device(padding)[:, None]
        return TAGNNBatch(graph, shapes, at_places, clicks, to_device([order]), to_device([missing])[:, None])


class TunedTAGNN(TunedSRGNN, TAGNNParameters):
    """TAGNN on packed sessions; no vector per item is formed.

    An item's score e·(z + Σ β_l h_l) is e·z + Σ β_l (e·h_l), so two products of clicks and items do.
    """

    @torch.compiler.disable(recursive=False)  # the groups' shapes would be compiled anew for every batch
    def forward(self, batch: TAGNNBatch) -> Tensor:
        """Logits [B, n_items + 1], column = item id."""
        h, scores = self.session_part(batch.graph, batch.missing)
        return scores + self.target_part(h, batch)

    def session_part(self, graph: SRGNNBatch, missing: Tensor | None) -> tuple[Tensor, Tensor]:
        """Nodes [N, d], and the part of the scores that asks no item [B, n_items + 1]."""
        n = len(graph.last)
        h = self.propagate(self.embedding.weight.index_select(0, graph.items), graph)
        last = h.index_select(0, graph.last)
        attended, clicks, session = h, graph.counts, graph.session
        if missing is not None:
            attended = torch.cat([h, self.padding_node().expand(n, -1)])
            clicks = torch.cat([clicks, missing])
            session = torch.cat([session, torch.arange(n, device=h.device)])
        alpha = softmax_by(self.attention(attended, session, last), session, n, clicks)
        s_global = sum_by(alpha[: len(h)] * h, graph.session, n)
        vectors = self.linear_transform(torch.cat([s_global, last], 1))
        return h, score_items(vectors, self.embedding.weight, self.mask)

    def padding_node(self) -> Tensor:
        """What the gated step makes of item 0, which has no neighbours [1, d]."""
        cell = self.gnn
        messages = torch.cat([cell.b_iah, cell.b_oah])[None]
        return torch.gru_cell(messages, self.embedding.weight[:1], cell.w_ih, cell.w_hh, cell.b_ih, cell.b_hh)

    @torch.compiler.disable
    def target_part(self, h: Tensor, batch: TAGNNBatch) -> Tensor:
        """Σ_l softmax_l(e·W h_l) (e·h_l) for all items [B, n_items + 1]."""
        rows = torch.cat([h, h.new_zeros(1, h.shape[1])]).index_select(0, batch.places)
        keys, table = self.linear_t(rows), self.embedding.weight
        scores = TargetScores.apply(keys, rows, table, batch.clicks.log(), batch.shapes)
        return torch.zeros_like(scores).index_copy(0, batch.order, scores)


class TargetScores(torch.autograd.Function):
    """Σ_l β_l (e·h_l), β = softmax_l(e·k_l + ln clicks), with a gradient of fewer passes than autograd's."""

    @staticmethod
    def forward(
        ctx: Any, keys: Tensor, h: Tensor, table: Tensor, bias: Tensor, shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Scores [B, items] in the groups' order; keys and h [R, d], table [items, d], bias = ln clicks [R, 1]."""
        beta, product = keys @ table.T, h @ table.T
        scores = torch.cat([mix(*group) for group in grouped(shapes, beta, product, bias)])
        ctx.shapes = shapes
        ctx.save_for_backward(keys, h, table, beta, product, scores)
        return scores

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        keys, h, table, beta, product, scores = ctx.saved_tensors
        rows = [sessions for sessions, _ in ctx.shapes]
        groups = grouped(ctx.shapes, beta, product)
        for (b, p), *of_group in zip(groups, scores.split(rows), gradient.split(rows), strict=True):
            unmix(b, p, *of_group)
        # Now they hold the gradients of h·tableᵀ and keys·tableᵀ.
        return product @ table, beta @ table, torch.addmm(beta.T @ h, product.T, keys), None, None


def grouped(shapes: list[tuple[int, int]], *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views [sessions, places, …] of each group's rows."""
    start = 0
    for sessions, places in shapes:
        stop = start + sessions * places
        yield tuple(column[start:stop].view(sessions, places, -1) for column in columns)
        start = stop


def mix(logits: Tensor, product: Tensor, bias: Tensor) -> Tensor:
    """Makes ``logits`` [G, w, items] their softmax over w, in place; returns its sums with ``product`` [G, items]."""
    logits.copy_(torch.softmax(logits + bias, 1))
    return (logits * product).sum(1)


def unmix(beta: Tensor, product: Tensor, scores: Tensor, gradient: Tensor) -> None:
    """Puts the gradients of product and logits in place of ``beta`` and ``product``."""
    beta.mul_(gradient[:, None])
    product.sub_(scores[:, None]).mul_(beta)
