"""A training step's matrix products: how many FLOPs they are, and how long this machine needs for them alone.

The products are those of the packed form at the data set's mean sizes, each with its two gradients. Products with
fewer than 8 columns (attention vectors) are left out: they are reductions, and less than 2 % of the FLOPs.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks.worker import torch_precision
from dmsrec_jax.data import SessionDataset

REPEATS, SECONDS = 5, 0.2


class Product(NamedTuple):
    """[m, k] times [k, n]."""

    m: int
    k: int
    n: int

    @property
    def flops(self) -> int:
        return 2 * self.m * self.k * self.n


class Rate(NamedTuple):
    """One training step's products, run back to back and nothing else."""

    flops: int
    seconds: float

    @property
    def gflops_per_s(self) -> float:
        return self.flops / self.seconds / 1e9


def step_products(dataset: SessionDataset, backbone: str, form: str, batch: int, d: int, k: int = 12) -> list[Product]:
    """All matrix products of one mean training step: forward, and both gradients of each.

    Ours multiplies SR-GNN's message maps with its gates' before the nodes see them, so it has less to do.
    """
    rows, items = np.repeat(np.arange(len(dataset.train)), dataset.train.lengths), dataset.train.items
    distinct = len(np.unique(rows * (dataset.n_items + 1) + items))
    nodes, clicks = (round(batch * count / len(dataset.train)) for count in (distinct, len(items)))
    score = Product(batch, d, dataset.n_items + 1)
    gated = [
        # eq. (1): in and out messages
        *2 * [Product(d + 2, d, 3 * d) if form == "jax" else Product(nodes, d, d)],
        Product(nodes, 2 * d, 3 * d),  # eq. (2) to (4): the gates' message side
        Product(nodes, d, 3 * d),  # and their hidden side
        Product(nodes, d, d),  # eq. (6): W_2 h_i
        Product(batch, d, d),  # W_1 h_n
        Product(batch, 2 * d, d),  # eq. (7)
    ]
    forward = {
        "srgnn": gated,
        "tagnn": [*gated, Product(nodes, d, d), *2 * [Product(nodes, d, dataset.n_items + 1)]],  # eq. (T4), (T5)
        "gcegnn": [
            Product(nodes * k, d, d),  # eq. (3): all global neighbours
            Product(nodes, 2 * d, d),  # eq. (6)
            Product(nodes, d, d),  # eq. (12): W_1 h, once per distinct item
            Product(int(dataset.train.lengths.max()), d, d),  # and once per position
            Product(clicks, d, d),  # eq. (14)
            Product(batch, d, d),
        ],
        "share": [
            *2 * [Product(d, d, d + 1), Product(nodes, d, d + 1)],  # (S1), (S2), (S4): maps first, then nodes
            Product(nodes, d, d),  # (S3): values of the second round
            *6 * [Product(batch, d, d)],  # (S7) to (S9)
        ],
        "msgifsr": [
            *2 * [Product(nodes, d, 8 * d)],  # (M3): W x, along the clicks and against them
            *4 * [Product(nodes, d, 8)],  # its logits
            Product(nodes, d, d),  # (M7): U h
            Product(batch, d, d),  # V sr_l
            Product(batch, 2 * d, d),  # (M9)
        ],
    }
    return [q for p in [*forward[backbone], score] for q in (p, Product(p.m, p.n, p.k), Product(p.k, p.m, p.n))]


def measure(products: list[Product], device: str) -> Rate:
    """Times each distinct shape in jax and in torch, the better counts."""
    best = {shape: min(_jax_seconds(shape, device), _torch_seconds(shape, device)) for shape in sorted(set(products))}
    return Rate(sum(p.flops for p in products), sum(best[p] for p in products))


def _operands(shape: Product) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    left = generator.standard_normal((shape.m, shape.k), np.float32)
    return left, generator.standard_normal((shape.k, shape.n), np.float32)


def _jax_seconds(shape: Product, device: str) -> float:
    import jax

    jax.config.update("jax_platforms", device)
    left, right = map(jax.device_put, _operands(shape))
    product = jax.jit(lambda a, b: a @ b)
    return _best_seconds(lambda: product(left, right), jax.block_until_ready)


def _torch_seconds(shape: Product, device: str) -> float:
    import torch

    torch.set_float32_matmul_precision(torch_precision(device))
    left, right = (torch.from_numpy(x).to(device) for x in _operands(shape))
    out = torch.empty(shape.m, shape.n, device=device)
    wait = (lambda _: torch.cuda.synchronize()) if device == "cuda" else (lambda _: None)
    return _best_seconds(lambda: torch.mm(left, right, out=out), wait)


def _best_seconds(call: Callable[[], object], wait: Callable[[object], object]) -> float:
    """Seconds per call, the best of a few runs of many calls."""
    wait(call())
    start = time.perf_counter()
    wait(call())
    calls = max(1, int(SECONDS / REPEATS / max(time.perf_counter() - start, 1e-6)))
    runs = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(calls):
            last = call()
        wait(last)
        runs.append((time.perf_counter() - start) / calls)
    return min(runs)
