"""What at least two backbones share: initial values, sums and softmaxes by segment, scores, padded sessions."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dmsrec_jax.data import Split


def reset(module: nn.Module, d: int) -> None:
    """Draws every parameter uniformly from ±1/sqrt(d)."""
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -1 / math.sqrt(d), 1 / math.sqrt(d))


def sum_by(values: Tensor, ids: Tensor, n: int) -> Tensor:
    """Sums rows of ``values`` [rows, …] by ``ids`` [rows]: [n, …]."""
    return values.new_zeros(n, *values.shape[1:]).index_add(0, ids, values)


def exp_by(logits: Tensor, ids: Tensor, n: int) -> Tensor:
    """A softmax by ``ids`` [rows] before it is normalised: exp(logits [rows, k] minus the largest of their id)."""
    peak = logits.new_full((n, logits.shape[1]), float("-inf"))
    peak = peak.scatter_reduce(0, ids[:, None].expand_as(logits), logits.detach(), "amax")
    return torch.exp(logits - peak.index_select(0, ids))


def softmax_by(logits: Tensor, ids: Tensor, n: int, times: Tensor | float = 1.0) -> Tensor:
    """A softmax by ``ids`` [rows] of logits [rows, k], in which a row counts ``times``."""
    weight = exp_by(logits, ids, n) * times
    return weight / sum_by(weight, ids, n).index_select(0, ids)


def score_items(vectors: Tensor, table: Tensor, mask: Tensor) -> Tensor:
    """Logits [B, n_items + 1]. The mask is -inf for item 0: slicing it off would copy the table's gradient."""
    return F.linear(vectors, table, mask)


def padding_mask(n_items: int) -> Tensor:
    """Zeros [n_items + 1], -inf at item 0."""
    return torch.zeros(n_items + 1).index_fill(0, torch.tensor(0), float("-inf"))


def pad(items: np.ndarray, offsets: np.ndarray, width: int, *, newest_first: bool = False) -> np.ndarray:
    """Sessions as one int64 matrix [rows, width], 0 where they end."""
    padded = np.zeros((len(offsets) - 1, width), np.int64)
    for row, (start, stop) in enumerate(itertools.pairwise(offsets)):
        session = items[start:stop]
        padded[row, : stop - start] = session[::-1] if newest_first else session
    return padded


def batches(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Slices of ``order``, the last one shorter."""
    for start in range(0, len(order), size):
        yield order[start : start + size]


def loaded(sessions: Dataset, parts: Iterable[np.ndarray], collate: Callable | None = None) -> Iterator[list[Tensor]]:
    """Batches of the ``parts`` (row numbers), built by four worker processes, as many as the released code has."""
    rows = [part.tolist() for part in parts]
    on_gpu = torch.cuda.is_initialized()  # where the model is
    return iter(DataLoader(sessions, batch_sampler=rows, num_workers=4, pin_memory=on_gpu, collate_fn=collate))


def longest(*splits: Split) -> int:
    """Clicks of the longest session."""
    return max(int(split.lengths.max()) for split in splits)
