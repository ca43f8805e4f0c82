"""Both PyTorch baselines compute what the original code computed: scores, loss, gradients, one Adam step."""

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch baselines need torch (extra `dev`)")

from benchmarks.pytorch_baseline.graphs import GCEGNNGraphs, SRGNNGraphs  # noqa: E402
from benchmarks.pytorch_baseline.released import (  # noqa: E402
    GCEGNNSessions,
    ReleasedGCEGNN,
    ReleasedSRGNN,
    pad,
    srgnn_graphs,
)
from benchmarks.pytorch_baseline.tuned import TunedGCEGNN, TunedSRGNN  # noqa: E402
from benchmarks.pytorch_baseline.workers import metrics, target_ranks  # noqa: E402
from dmsrec_jax.metrics import rank_targets, summarise  # noqa: E402

GOLDEN = Path(os.environ.get("DMSREC_GOLDEN_DIR", Path(__file__).parents[2] / "../shared/golden"))
CPU = torch.device("cpu")
LR, L2 = 1e-3, 1e-5


def golden(backbone):
    path = GOLDEN / f"{backbone}_plain.npz"
    if not path.is_file():
        pytest.skip(f"no golden file {path}; set DMSREC_GOLDEN_DIR")
    return np.load(path, allow_pickle=False)


def csr(file):
    lengths = file["lengths"]
    items = np.concatenate([row[:n] for row, n in zip(file["sessions"], lengths, strict=True)])
    return items.astype(np.int64), np.concatenate([[0], np.cumsum(lengths)])


def released_srgnn(file, items, offsets):
    sessions = pad(items, offsets, file["sessions"].shape[1])
    alias, adjacency, nodes = srgnn_graphs(sessions)
    model = ReleasedSRGNN(int(file["n_items"]), file["param/embedding.weight"].shape[1])
    return model, lambda: model(alias, adjacency, nodes, torch.from_numpy(sessions > 0).long())


def tuned_srgnn(file, items, offsets):
    rows = np.arange(len(offsets) - 1)
    batch = SRGNNGraphs(items, offsets, CPU).pack(rows, torch.from_numpy(rows))
    model = TunedSRGNN(int(file["n_items"]), file["param/embedding.weight"].shape[1])
    return model, lambda: model(batch)[:, 1:]


def gcegnn_arguments(file):
    positions, d = file["param/pos_embedding.weight"].shape
    return int(file["n_items"]), d, positions, torch.from_numpy(file["adj"]), torch.from_numpy(file["num"])


def released_gcegnn(file, items, offsets):
    sessions = pad(items, offsets, file["sessions"].shape[1], newest_first=True)
    rows = GCEGNNSessions(sessions, file["targets"])
    *inputs, _ = (torch.stack(column) for column in zip(*(rows[i] for i in range(len(rows))), strict=True))
    model = ReleasedGCEGNN(*gcegnn_arguments(file))
    return model, lambda: model(*inputs)


def tuned_gcegnn(file, items, offsets):
    rows = np.arange(len(offsets) - 1)
    batch = GCEGNNGraphs(items, offsets, CPU).pack(rows, torch.from_numpy(rows))
    model = TunedGCEGNN(*gcegnn_arguments(file))
    return model, lambda: model(batch)[:, 1:]


@pytest.mark.parametrize(
    "build", [released_srgnn, tuned_srgnn, released_gcegnn, tuned_gcegnn], ids=lambda f: f.__name__
)
def test_golden(build):
    file = golden(build.__name__.split("_")[1])
    model, forward = build(file, *csr(file))
    unused = {str(key) for key in file["no_grad_keys"]}
    stored = {key.removeprefix("param/"): file[key] for key in file.files if key.startswith("param/")}
    model.load_state_dict({key: torch.from_numpy(value) for key, value in stored.items() if key not in unused})
    model.eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, weight_decay=L2)

    scores = forward()
    np.testing.assert_allclose(scores.detach(), file["scores"], atol=1e-5)
    loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(file["targets"]).long() - 1)
    np.testing.assert_allclose(loss.item(), file["ce_loss"], atol=1e-5)
    loss.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        gradient = file[f"grad/{name}"]
        np.testing.assert_allclose(parameter.grad, gradient, atol=1e-5, rtol=1e-3, err_msg=name)
        # The first Adam step is about lr · sign(gradient): where the gradient is about 0, only its size is defined.
        clear = np.abs(gradient + L2 * stored[name]) > 1e-6
        error = np.abs(parameter.detach().numpy() - file[f"adam1/{name}"])
        assert error[clear].max(initial=0) < 1e-5, name
        assert error.max() <= 2 * LR, name


def test_packing_is_independent_of_order():
    """A batch gives each session the scores it gets alone, repeats and single clicks included."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 9, 40)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = generator.integers(1, 12, offsets[-1])  # few items: most sessions repeat some
    neighbors = torch.from_numpy(generator.integers(0, 12, (12, 3)))
    srgnn, gcegnn = TunedSRGNN(11, 8), TunedGCEGNN(11, 8, 10, neighbors, torch.ones(12, 3)).eval()
    for graphs, model in ((SRGNNGraphs(items, offsets, CPU), srgnn), (GCEGNNGraphs(items, offsets, CPU), gcegnn)):
        rows = generator.permutation(40)
        together = model(graphs.pack(rows, torch.from_numpy(rows)))
        alone = torch.cat([model(graphs.pack(rows[i : i + 1], torch.from_numpy(rows[i : i + 1]))) for i in range(40)])
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-4)


def test_tuned_evaluation_ranks_as_ours():
    """Ties, seen items and repeated targets are treated alike, so that both evaluations do the same work."""
    generator = np.random.default_rng(1)
    lengths = generator.integers(1, 6, 50)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items, targets = generator.integers(1, 15, offsets[-1]), generator.integers(1, 15, 50)
    logits = generator.integers(0, 6, (50, 15)).astype(np.float32)  # many ties
    logits[:, 0] = -np.inf
    rows = np.arange(50)
    batch = SRGNNGraphs(items, offsets, CPU).pack(rows, torch.from_numpy(rows))
    ranks = target_ranks(torch.from_numpy(logits), torch.from_numpy(targets), batch)
    expected = rank_targets(logits, targets, np.repeat(rows, lengths), items)
    np.testing.assert_array_equal(ranks, expected)
    views = [list(view.values()) for view in summarise(expected).values()]
    np.testing.assert_allclose(100 * metrics(ranks), views)
