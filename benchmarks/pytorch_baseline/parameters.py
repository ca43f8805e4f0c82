"""What SR-GNN and GCE-GNN learn. Names and shapes are those of the original repositories' state dicts."""

import math

import torch
from torch import nn


def reset(module: nn.Module, d: int) -> None:
    """Draws every parameter uniformly from ±1/sqrt(d)."""
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -1 / math.sqrt(d), 1 / math.sqrt(d))


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
