"""MSGIFSR of order 1 (Guo et al. 2022): graph attention along the clicks and against them, scores are cosines."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.pytorch_baseline.graphs import DistinctItems, GraphRows, Ragged
from benchmarks.pytorch_baseline.layers import exp_by, loaded, reset, softmax_by, sum_by
from dmsrec_jax.data import Split

HEADS, SLOPE, SCALE = 8, 0.2, 12


class AttentionParameters(nn.Module):
    """Graph attention with 8 heads of size d."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.fc = nn.Linear(d, HEADS * d, bias=False)
        self.attn_l = nn.Parameter(torch.empty(1, HEADS, d))
        self.attn_r = nn.Parameter(torch.empty(1, HEADS, d))
        self.bias = nn.Parameter(torch.empty(HEADS * d))


class MSGIFSRParameters(nn.Module):
    """Item table, attention both ways, readout against the last click."""

    def __init__(self, n_items: int, d: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = dropout
        self.embeddings = nn.Embedding(n_items + 1, d)
        convolutions = {name: nest("mods.intra1", AttentionParameters(d)) for name in ("conv1", "conv2")}
        self.layers: Any = nn.ModuleList([nn.ModuleDict(convolutions)])
        self.readout: Any = nn.Module()
        for name, width, bias in (("fc_u", d, True), ("fc_v", d, False), ("fc_e", 1, False)):
            self.readout.add_module(name, nn.ModuleList([nn.Linear(d, width, bias=bias)]))
        self.fc_sr = nn.ModuleList([nn.Linear(2 * d, d, bias=False)])
        reset(self, d)

    @property
    def convolutions(self) -> list[AttentionParameters]:
        """Along the clicks, against them."""
        return [self.layers[0][name].mods.intra1 for name in ("conv1", "conv2")]

    def drop(self, x: Tensor) -> Tensor:
        """Dropout in training, everywhere at the same rate."""
        return F.dropout(x, self.dropout, self.training)


def nest(path: str, module: nn.Module) -> nn.Module:
    """A module that holds ``module`` under a path."""
    for name in reversed(path.split(".")):
        outer = nn.Module()
        outer.add_module(name, module)
        module = outer
    return module


class MSGIFSRSessions(Dataset):
    """One split; worker processes build a batch's graphs, session by session."""

    def __init__(self, split: Split) -> None:
        self.sessions = [split.items[a:b].tolist() for a, b in itertools.pairwise(split.offsets)]
        self.labels = np.array(split.targets, np.int64)

    def batches(self, parts: Iterable[np.ndarray]) -> Iterator[list[Tensor]]:
        """What `ReleasedMSGIFSR` takes, and labels, for each of the ``parts`` (row numbers)."""
        return loaded(self, parts, collate)

    def __len__(self) -> int:
        return len(self.sessions)

    def __getitem__(self, row: int) -> tuple[list[int], int]:
        return self.sessions[row], self.labels[row]


def session_graph(session: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Items [n], senders and receivers [distinct transitions], and which node was clicked last [n]."""
    items = np.unique(session)
    node = {item: i for i, item in enumerate(items)}
    clicks = [node[item] for item in session]
    edges = Counter(itertools.pairwise(clicks)).keys()
    senders, receivers = zip(*edges, strict=True) if edges else ((), ())
    last = torch.zeros(len(items), dtype=torch.int32)
    last[clicks[-1]] = 1
    return torch.from_numpy(items), torch.tensor(senders).long(), torch.tensor(receivers).long(), last


def collate(samples: list[tuple[list[int], int]]) -> list[Tensor]:
    """One graph of a batch's session graphs: items, senders, receivers, last, nodes of each session; and labels."""
    graphs, first, parts = [session_graph(session) for session, _ in samples], 0, []
    for items, senders, receivers, last in graphs:
        parts.append((items, senders + first, receivers + first, last))
        first += len(items)
    sizes = torch.tensor([len(items) for items, *_ in graphs])
    return [*(torch.cat(column) for column in zip(*parts, strict=True)), sizes, torch.tensor([y for _, y in samples])]


class ReleasedMSGIFSR(MSGIFSRParameters):
    """MSGIFSR as its graph library computes it: a product for both ends of the edges, a loop over sessions."""

    def __init__(self, n_items: int, d: int) -> None:
        super().__init__(n_items, d)
        self.embeddings.max_norm = 1.0  # every look-up scales longer vectors down, in the table

    def forward(self, items: Tensor, senders: Tensor, receivers: Tensor, is_last: Tensor, sizes: Tensor) -> Tensor:
        """Logits [B, n_items + 1], column = item id; see `collate`."""
        x = F.normalize(self.drop(self.embeddings(items)), dim=1)
        along, against = self.convolutions
        heads = self.attend(along, x, senders, receivers) + self.attend(against, x, receivers, senders)
        session = torch.repeat_interleave(torch.arange(len(sizes), device=x.device), sizes)
        mean = sum_by(x, session, len(sizes)) / sizes[:, None]
        h = F.normalize(heads.max(1)[0] + mean[session], dim=1)
        last = h[is_last.nonzero()[:, 0]]
        vectors = self.fc_sr[0](torch.cat([last, self.read_out(h, last, sizes)], 1))
        table = self.embeddings(torch.arange(self.embeddings.num_embeddings, device=x.device))
        return SCALE * F.normalize(vectors, dim=1) @ F.normalize(table, dim=1).T

    def attend(self, cell: AttentionParameters, x: Tensor, senders: Tensor, receivers: Tensor) -> Tensor:
        """Heads [N, 8, d]."""
        n, d = x.shape
        source, sink = self.drop(x), self.drop(x)
        of_source, of_sink = cell.fc(source).view(n, HEADS, d), cell.fc(sink).view(n, HEADS, d)
        by_sender, by_receiver = (of_source * cell.attn_l).sum(2), (of_sink * cell.attn_r).sum(2)
        weight = exp_by(F.leaky_relu(by_sender[senders] + by_receiver[receivers], SLOPE), receivers, n)
        alpha = self.drop(weight / sum_by(weight, receivers, n)[receivers])
        mixed = sum_by(alpha[:, :, None] * of_source[senders], receivers, n)
        return mixed + sink[:, None] + cell.bias.view(HEADS, d)

    def read_out(self, h: Tensor, last: Tensor, sizes: Tensor) -> Tensor:
        """What sessions attend to [B, d]."""
        (fc_u,), (fc_v,), (fc_e,) = self.readout.fc_u, self.readout.fc_v, self.readout.fc_e
        h = torch.cat(list(h.split(sizes.tolist())))
        session = torch.cat([torch.full((size,), row) for row, size in enumerate(sizes.tolist())]).to(h.device)
        weight = exp_by(fc_e(torch.sigmoid(fc_u(h) + fc_v(last)[session])), session, len(sizes))
        alpha = weight / sum_by(weight, session, len(sizes))[session]
        return sum_by(alpha * h, session, len(sizes))


class MSGIFSRBatch(NamedTuple):
    """Packed sessions: N nodes, M transitions, B sessions."""

    items: Tensor  # [N]
    share: Tensor  # [N, 1], 1 / nodes of the session
    session: Tensor  # [N]
    last: Tensor  # [B], node of the last click
    senders: Tensor  # [M]
    receivers: Tensor  # [M]


class MSGIFSRGraphs:
    """All session graphs of one split, for MSGIFSR."""

    def __init__(self, items: np.ndarray, offsets: np.ndarray, device: torch.device) -> None:
        nodes = DistinctItems.of(items, offsets)
        sizes = np.diff(nodes.offsets)
        share = np.repeat(1 / sizes, sizes).astype(np.float32)
        edges = nodes.ragged_edges(nodes.transitions(), (), device)
        self.rows = GraphRows(Ragged(nodes.offsets, (nodes.items, share), device), edges, nodes.last, device)

    def pack(self, host_rows: np.ndarray, rows: Tensor) -> MSGIFSRBatch:
        """One flat batch of the rows [B]."""
        session, (items, share), (senders, receivers), last = self.rows.pick(host_rows, rows)
        return MSGIFSRBatch(items, share[:, None], session, last, senders, receivers)


class TunedMSGIFSR(MSGIFSRParameters):
    """MSGIFSR on packed sessions."""

    def forward(self, batch: MSGIFSRBatch) -> Tensor:
        """Logits [B, n_items + 1], column = item id."""
        n, session = len(batch.last), batch.session
        x = F.normalize(self.drop(self.embeddings.weight.index_select(0, batch.items)), dim=1)
        along, against = self.convolutions
        mixed, sinks = zip(
            self.attend(along, x, batch.senders, batch.receivers),
            self.attend(against, x, batch.receivers, batch.senders),
            strict=True,
        )
        heads = (sinks[0] + sinks[1])[:, None] + (along.bias + against.bias).view(HEADS, -1)
        heads.index_add_(0, batch.receivers, mixed[0]).index_add_(0, batch.senders, mixed[1])
        mean = sum_by(batch.share * x, session, n).index_select(0, session)
        h = F.normalize(heads.max(1)[0] + mean, dim=1)
        last = h.index_select(0, batch.last)
        (fc_u,), (fc_v,), (fc_e,) = self.readout.fc_u, self.readout.fc_v, self.readout.fc_e
        logits = F.linear(torch.sigmoid(fc_u(h) + fc_v(last).index_select(0, session)), fc_e.weight)
        weight = exp_by(logits, session, n)
        context = sum_by(weight * h, session, n) / sum_by(weight, session, n)
        vectors = F.normalize(self.fc_sr[0](torch.cat([last, context], 1)), dim=1)
        return F.linear(SCALE * vectors, F.normalize(self.embeddings.weight, dim=1))

    def attend(self, cell: AttentionParameters, x: Tensor, senders: Tensor, receivers: Tensor) -> tuple[Tensor, Tensor]:
        """What edges bring [M, 8, d], and their sinks [N, d]; logits by maps of d to 8, without the sinks' product."""
        n, d = x.shape
        source, sink, maps = self.drop(x), self.drop(x), cell.fc.weight.view(HEADS, d, d)
        by_sender = source @ torch.einsum("hji,hj->ih", maps, cell.attn_l[0])
        by_receiver = sink @ torch.einsum("hji,hj->ih", maps, cell.attn_r[0])
        logits = F.leaky_relu(by_sender.index_select(0, senders) + by_receiver.index_select(0, receivers), SLOPE)
        alpha = self.drop(softmax_by(logits, receivers, n))
        mapped = cell.fc(source).index_select(0, senders).view(-1, HEADS, d)
        return alpha[:, :, None] * mapped, sink
