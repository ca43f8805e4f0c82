"""Both PyTorch baselines compute what the original code computed: scores, loss, gradients, one Adam step."""

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch baselines need torch (extra `dev`)")

from benchmarks.pytorch_baseline.tagnn import TargetScores  # noqa: E402
from benchmarks.pytorch_baseline.workers import FORMS, TorchWorker, metrics, target_ranks  # noqa: E402
from benchmarks.worker import COMPARED, Task  # noqa: E402
from dmsrec_jax.data import Split  # noqa: E402
from dmsrec_jax.metrics import rank_targets, summarise  # noqa: E402

GOLDEN = Path(os.environ.get("DMSREC_GOLDEN_DIR", Path(__file__).parents[2] / "../shared/golden"))
CPU = torch.device("cpu")
LR = 1e-3
L2 = {"msgifsr": 1e-4, "share": 0.0}
"""As the repository's optimiser has it, where it is not 1e-5."""


def golden(backbone):
    path = GOLDEN / f"{backbone}_plain.npz"
    if not path.is_file():
        pytest.skip(f"no golden file {path}; set DMSREC_GOLDEN_DIR")
    return np.load(path, allow_pickle=False)


def split_of(file):
    lengths = file["lengths"]
    items = np.concatenate([row[:n] for row, n in zip(file["sessions"], lengths, strict=True)])
    return Split(items.astype(np.int64), np.append(0, np.cumsum(lengths)), file["targets"], np.arange(len(lengths)))


def arguments(file, backbone):
    """What models take beside sizes."""
    if backbone != "gcegnn":
        return ()
    return len(file["param/pos_embedding.weight"]), torch.from_numpy(file["adj"]), torch.from_numpy(file["num"])


def build(file, backbone, form):
    """A model in a form, and its inputs."""
    forms, split = FORMS[backbone], split_of(file)
    table = "embeddings.weight" if backbone == "msgifsr" else "embedding.weight"
    d = file[f"param/{table}"].shape[1]
    model = getattr(forms, form)(int(file["n_items"]), d, *arguments(file, backbone))
    if form == "released":
        *inputs, _ = next(iter(forms.sessions(split).batches([np.arange(len(split))])))
        return model, inputs
    rows = np.arange(len(split))
    # The tuned TAGNN leaves padding out, unless told how much the original counted.
    padding = (file["sessions"].shape[1],) if backbone == "tagnn" else ()
    return model, [forms.graphs(split.items, split.offsets, CPU, *padding).pack(rows, torch.from_numpy(rows))]


@pytest.mark.parametrize("form", ["released", "tuned"])
@pytest.mark.parametrize("backbone", COMPARED)
def test_golden(backbone, form):
    file = golden(backbone)
    model, inputs = build(file, backbone, form)
    l2 = L2.get(backbone, 1e-5)
    unused = {str(key) for key in file["no_grad_keys"]}
    stored = {key.removeprefix("param/"): file[key] for key in file.files if key.startswith("param/")}
    model.load_state_dict({key: torch.from_numpy(value) for key, value in stored.items() if key not in unused})
    model.eval()
    biases = [p for name, p in model.named_parameters() if backbone == "msgifsr" and "bias" in name]
    others = [p for p in model.parameters() if all(p is not bias for bias in biases)]
    groups = [{"params": others}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.Adam(groups, lr=LR, weight_decay=l2)

    scores, labels, atol = model(*inputs), torch.from_numpy(file["targets"]).long(), 1e-5
    if backbone == "msgifsr":  # log-probabilities of all rows, id 0 too
        scores, atol = scores.log_softmax(1), 5e-5
    else:
        scores, labels = scores[:, scores.shape[1] - int(file["n_items"]) :], labels - 1
    np.testing.assert_allclose(scores.detach(), file["scores"], atol=atol)
    loss = torch.nn.functional.cross_entropy(scores, labels)
    np.testing.assert_allclose(loss.item(), file["ce_loss"], atol=1e-5)
    loss.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        gradient = file[f"grad/{name}"]
        np.testing.assert_allclose(parameter.grad, gradient, atol=1e-5, rtol=1e-3, err_msg=name)
        # The first Adam step is about lr · sign(gradient): where the gradient is about 0, only its size is defined.
        decay = 0.0 if any(parameter is bias for bias in biases) else l2
        clear = np.abs(gradient + decay * stored[name]) > 1e-6
        error = np.abs(parameter.detach().numpy() - file[f"adam1/{name}"])
        assert error[clear].max(initial=0) < 1e-5, name
        assert error.max() <= 2 * LR, name


def test_tagnn_gradients_are_those_of_autograd():
    """Its target part has a gradient of its own; groups of one and two sessions, an empty place, repeated clicks."""
    generator = np.random.default_rng(2)
    keys, h, table = (torch.tensor(generator.normal(size=(n, 4)), requires_grad=True) for n in (7, 7, 6))
    bias = torch.tensor([[1.0], [2.0], [1.0], [1.0], [3.0], [1.0], [0.0]], dtype=torch.float64).log()
    scores = TargetScores.apply(keys, h, table, bias, [(1, 3), (2, 2)])
    sessions = [slice(0, 3), slice(3, 5), slice(5, 7)]
    alike = torch.stack([((keys[s] @ table.T + bias[s]).softmax(0) * (h[s] @ table.T)).sum(0) for s in sessions])
    torch.testing.assert_close(scores, alike)
    gradients = (torch.autograd.grad((x**2).sum(), (keys, h, table)) for x in (scores, alike))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backbone", COMPARED)
def test_packing_is_independent_of_order(backbone):
    """A batch gives each session the scores it gets alone, repeats and single clicks included."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 9, 40)
    offsets = np.append(0, np.cumsum(lengths))
    items = generator.integers(1, 12, offsets[-1])  # few items: most sessions repeat some
    extra = (10, torch.from_numpy(generator.integers(0, 12, (12, 3))), torch.ones(12, 3))
    graphs = FORMS[backbone].graphs(items, offsets, CPU)
    torch.manual_seed(0)
    model = FORMS[backbone].tuned(11, 8, *(extra if backbone == "gcegnn" else ())).eval()
    rows = generator.permutation(40)
    together = model(graphs.pack(rows, torch.from_numpy(rows)))
    alone = torch.cat([model(graphs.pack(rows[i : i + 1], torch.from_numpy(rows[i : i + 1]))) for i in range(40)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)  # MSGIFSR's scores are 12 times a cosine


def test_tuned_evaluation_ranks_as_ours():
    """Ties, seen items and repeated targets are treated alike, so that both evaluations do the same work."""
    generator = np.random.default_rng(1)
    lengths = generator.integers(1, 6, 50)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items, targets = generator.integers(1, 15, offsets[-1]), generator.integers(1, 15, 50)
    logits = generator.integers(0, 6, (50, 15)).astype(np.float32)  # many ties
    logits[:, 0] = -np.inf
    rows = np.arange(50)
    batch = FORMS["srgnn"].graphs(items, offsets, CPU).pack(rows, torch.from_numpy(rows))
    ranks = target_ranks(torch.from_numpy(logits), torch.from_numpy(targets), batch)
    expected = rank_targets(logits, targets, np.repeat(rows, lengths), items)
    np.testing.assert_array_equal(ranks, expected)
    views = [list(view.values()) for view in summarise(expected).values()]
    np.testing.assert_allclose(100 * metrics(ranks), views)


@pytest.mark.parametrize(("device", "precision"), [("cuda", "high"), ("cpu", "highest")])
def test_products_are_as_precise_as_ours(device, precision):
    """On a GPU jax takes TF32 unasked; whether there is a GPU is not looked at yet."""
    TorchWorker(Task(Path("data"), "srgnn", "tuned", 100, 8, 0, device))
    assert torch.get_float32_matmul_precision() == precision
