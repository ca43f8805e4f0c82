"""The two PyTorch forms as benchmark workers: data, training loop, evaluation."""

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.pytorch_baseline import gcegnn, msgifsr, share, srgnn, tagnn
from benchmarks.pytorch_baseline.layers import batches
from benchmarks.worker import Measured, Task, endless, run_for, torch_precision
from dmsrec_jax.config import Backbone
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.metrics import KS, out_of_reach

LR, L2 = 1e-3, 1e-5
EVALUATION_BATCH = 256
"""Tuned form; as many as our own evaluation takes. The released code evaluates with the training batch."""


class Forms(NamedTuple):
    """A backbone's two models, and what feeds them."""

    tuned: Callable[..., nn.Module]
    graphs: Callable[..., Any]
    """From items, offsets and device; its ``pack`` makes what ``tuned`` takes."""
    released: Callable[..., nn.Module]
    sessions: Callable[..., Any]
    """From a split; its ``batches`` are what ``released`` takes, and labels: columns of its logits."""
    arguments: Callable[[SessionDataset], tuple[Any, ...]] = lambda dataset: ()
    """What both models take beside n_items and d."""


FORMS: dict[Backbone, Forms] = {
    "srgnn": Forms(srgnn.TunedSRGNN, srgnn.SRGNNGraphs, srgnn.ReleasedSRGNN, srgnn.SRGNNSessions),
    "gcegnn": Forms(
        gcegnn.TunedGCEGNN, gcegnn.GCEGNNGraphs, gcegnn.ReleasedGCEGNN, gcegnn.GCEGNNSessions, gcegnn.arguments
    ),
    "tagnn": Forms(tagnn.TunedTAGNN, tagnn.TAGNNGraphs, tagnn.ReleasedTAGNN, srgnn.SRGNNSessions),
    "share": Forms(share.TunedSHARE, share.SHAREGraphs, share.ReleasedSHARE, share.SHARESessions),
    "msgifsr": Forms(msgifsr.TunedMSGIFSR, msgifsr.MSGIFSRGraphs, msgifsr.ReleasedMSGIFSR, msgifsr.MSGIFSRSessions),
}


class TorchWorker:
    """What both forms share: device, precision, description, the end of a measurement."""

    model: nn.Module

    def __init__(self, task: Task) -> None:
        torch.manual_seed(task.seed)
        torch.set_float32_matmul_precision(torch_precision(task.device))
        self.device, self.batch = torch.device(task.device), task.batch
        self.generator = np.random.default_rng(task.seed)

    def finish(self, total: Tensor, count: int) -> float:
        """Mean of a sum on the device; waits for it, which ends all queued work."""
        return float(total) / count

    def describe(self) -> dict[str, object]:
        """Torch's version, threads and device, and the peak of the device's memory."""
        on_gpu = self.device.type == "cuda"
        return {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "device_peak_mb": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None,
        }


class TunedWorker(TorchWorker):
    """Graphs built once, packed on the device, compiled, fused Adam."""

    def __init__(self, task: Task) -> None:
        os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # the warm-up time is to be that of a first run
        super().__init__(task)
        torch.set_flush_denormal(True)
        dataset = SessionDataset.load(task.dataset)
        forms = FORMS[task.backbone]
        self.splits = [
            (forms.graphs(np.asarray(split.items, np.int64), split.offsets, self.device), self.to_device(split.targets))
            for split in (dataset.train, dataset.test)
        ]
        self.model = forms.tuned(dataset.n_items, task.d, *forms.arguments(dataset)).to(self.device)
        # Batches differ in size. Against eager: SR-GNN 1.1 times as fast, GCE-GNN 1.15 times (one core).
        self.model.compile(dynamic=True)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LR, weight_decay=L2, fused=True)
        self.train_rows = endless(self.shuffled)
        self.test_rows = endless(lambda: batches(np.arange(len(dataset.test)), EVALUATION_BATCH))

    def to_device(self, array: np.ndarray) -> Tensor:
        """A copy as int64."""
        return torch.from_numpy(np.array(array, np.int64)).to(self.device)

    def shuffled(self) -> Iterator[np.ndarray]:
        """One epoch's batches of row numbers."""
        return batches(self.generator.permutation(len(self.splits[0][1])), self.batch)

    def train(self, seconds: float) -> Measured:
        """See `Worker.train`."""
        self.model.train()
        (graphs, targets), total, count = self.splits[0], torch.zeros((), device=self.device), 0

        def step() -> int:
            nonlocal total, count
            host_rows = next(self.train_rows)
            rows = torch.from_numpy(host_rows).to(self.device, non_blocking=True)
            loss = F.cross_entropy(self.model(graphs.pack(host_rows, rows)), targets.index_select(0, rows))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total, count = total + loss.detach(), count + 1
            return len(host_rows)

        return run_for(seconds, step, lambda: self.finish(total, count))

    @torch.inference_mode()
    def evaluate(self, seconds: float) -> Measured:
        """See `Worker.evaluate`. Ranks raw and with seen items excluded; ties count against the target."""
        self.model.eval()
        graphs, targets = self.splits[1]
        ranks = []

        def step() -> int:
            host_rows = next(self.test_rows)
            rows = torch.from_numpy(host_rows).to(self.device, non_blocking=True)
            batch = graphs.pack(host_rows, rows)
            ranks.append(target_ranks(self.model(batch), targets.index_select(0, rows), batch))
            return len(host_rows)

        return run_for(seconds, step, lambda: 100 * float(metrics(torch.cat(ranks))[0, KS.index(20)]))


def target_ranks(logits: Tensor, targets: Tensor, batch: Any) -> Tensor:
    """Ranks of the targets [B, 2]: raw, and with the session's own items excluded."""
    own = logits.gather(1, targets[:, None])
    raw = logits.shape[1] - 1 - (logits[:, 1:] < own).sum(1)
    other = batch.items != targets.index_select(0, batch.session)
    ahead = other & (logits[batch.session, batch.items] >= own.index_select(0, batch.session)[:, 0])
    seen = torch.zeros_like(targets).index_add_(0, batch.session, ahead.long())
    repeated = torch.zeros_like(targets).index_add_(0, batch.session, (~other).long()) > 0
    return torch.stack([raw, torch.where(repeated, out_of_reach(logits.shape[1] - 1), raw - seen)], 1)


def metrics(ranks: Tensor) -> np.ndarray:
    """HR, MRR and NDCG at `KS`, float64 [2, 9], of ranks [n, 2]."""
    rank = ranks.T.cpu().numpy()
    gains = (np.ones_like(rank), 1 / rank, 1 / np.log2(rank + 1.0))
    return np.stack([gain * (rank <= k) for gain in gains for k in KS], 2).mean(1)


class ReleasedWorker(TorchWorker):
    """Padded sessions, graphs rebuilt in Python, plain Adam, metrics in a loop."""

    def __init__(self, task: Task) -> None:
        warnings.filterwarnings("ignore", "This DataLoader will create 4 worker")  # four, however few the cores
        super().__init__(task)
        dataset, forms = SessionDataset.load(task.dataset), FORMS[task.backbone]
        self.model = forms.released(dataset.n_items, task.d, *forms.arguments(dataset)).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LR, weight_decay=L2)
        train, test = (forms.sessions(split) for split in (dataset.train, dataset.test))
        n, m = len(dataset.train), len(dataset.test)
        self.train_batches = endless(lambda: train.batches(batches(self.generator.permutation(n), self.batch)))
        self.test_batches = endless(lambda: test.batches(batches(np.arange(m), self.batch)))

    def train(self, seconds: float) -> Measured:
        """See `Worker.train`."""
        self.model.train()
        total, count = torch.zeros((), device=self.device), 0

        def step() -> int:
            nonlocal total, count
            self.optimizer.zero_grad()
            *inputs, labels = (column.to(self.device) for column in next(self.train_batches))
            loss = F.cross_entropy(self.model(*inputs), labels)
            loss.backward()
            self.optimizer.step()
            total, count = total + loss.detach(), count + 1
            return len(labels)

        return run_for(seconds, step, lambda: self.finish(total, count))

    @torch.no_grad()
    def evaluate(self, seconds: float) -> Measured:
        """See `Worker.evaluate`. Top 20 to the host, HR and MRR session by session."""
        self.model.eval()
        hits: list[float] = []
        reciprocal: list[float] = []

        def step() -> int:
            *inputs, labels = next(self.test_batches)
            top = self.model(*(column.to(self.device) for column in inputs)).topk(20)[1].cpu().numpy()
            for items, label in zip(top, labels.numpy(), strict=True):
                hits.append(float(np.isin(label, items)))
                place = np.where(items == label)[0]
                reciprocal.append(1 / (place[0] + 1) if len(place) else 0.0)
            return len(labels)

        return run_for(seconds, step, lambda: 100 * float(np.mean(hits)))
