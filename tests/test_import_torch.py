from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from dmsrec_jax import prepare
from dmsrec_jax.backbones import BACKBONES, reads
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.import_torch import locate, main, torch_keys, torch_layout
from dmsrec_jax.item_graph import read_sessions
from dmsrec_jax.metrics import summarise
from dmsrec_jax.model import ModelSettings
from dmsrec_jax.recommend import Recommender
from dmsrec_jax.runs import load_run, new_model
from dmsrec_jax.scoring import Scorer
from tests.conftest import N_ITEMS, shared

D, POSITIONS = 6, 11


def call(*argv: object) -> None:
    main([str(word) for word in argv])


def state_dict(backbone: str, dataset: SessionDataset) -> tuple[nnx.State, dict[str, np.ndarray]]:
    """A fresh model's parameters, and the same in torch's layout."""
    graph = read_sessions(reads(backbone), dataset.sessions, N_ITEMS, 12)
    _, params = new_model(ModelSettings(backbone, N_ITEMS, D, "dot", POSITIONS), graph, jax.random.key(4))
    pure = nnx.to_pure_dict(params)
    weights = {}
    for key, path in torch_keys(backbone, params).items():
        holder, name = locate(pure, path)
        weights[key] = np.ascontiguousarray(torch_layout(np.asarray(holder[name]), path))
    return params, weights


@pytest.fixture
def weights(tiny: SessionDataset) -> dict[str, np.ndarray]:
    return state_dict("gcegnn", tiny)[1]


@pytest.fixture
def imports(tiny: SessionDataset, tmp_path, refused):
    """Imports a weights file as GCE-GNN; it must be refused."""

    def attempt(path: Path, *flags: object) -> str:
        words = ("--backbone", "gcegnn", "--weights", path, "--dataset", tiny.path, "--out", tmp_path / "run", *flags)
        error = refused(main, *words)
        assert not (tmp_path / "run").exists()
        return error

    return attempt


@pytest.mark.parametrize("backbone", BACKBONES)
def test_there_and_back(tiny: SessionDataset, tmp_path, backbone):
    params, weights = state_dict(backbone, tiny)
    if "items[1:]" in BACKBONES[backbone].TORCH_KEYS.values():  # no row for padding
        params["items"][...] = params["items"][...].at[0].set(0.0)
    np.savez(tmp_path / "weights.npz", **weights)
    run = tmp_path / "run"
    flags = ("--backbone", backbone, "--weights", tmp_path / "weights.npz", "--dataset", tiny.path, "--out", run)
    call(*flags)
    loaded = load_run(run)
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(loaded.params), nnx.to_pure_dict(params))
    assert Recommender.load(run).recommend([[1, 2]], k=3)[0].shape == (1, 3)
    call(*flags, "--overwrite")


def test_padding_takes_part_where_it_did(tiny: SessionDataset, tmp_path, capsys, refused):
    weights = state_dict("miasrec", tiny)[1]
    np.savez(tmp_path / "weights.npz", **weights)
    flags = ("--backbone", "miasrec", "--weights", tmp_path / "weights.npz", "--dataset", tiny.path)
    call(*flags, "--out", tmp_path / "own")
    assert "its own scores need --released-padding" in capsys.readouterr().out
    call(*flags, "--out", tmp_path / "padded", "--released-padding", POSITIONS)
    assert "--released-padding" not in capsys.readouterr().out
    assert load_run(tmp_path / "padded").settings.released_padding == POSITIONS
    own, padded = (Recommender.load(tmp_path / name).recommend([[1, 2]], k=5)[1] for name in ("own", "padded"))
    assert not np.allclose(own, padded, atol=1e-3)
    for padding, told in ((tiny.longest - 1, "the longest session"), (POSITIONS + 1, f"rows for {POSITIONS} clicks")):
        assert told in refused(main, *flags, "--out", tmp_path / "out", "--released-padding", padding)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt"])
def test_other_formats(tiny: SessionDataset, tmp_path, capsys, weights, suffix):
    torch = pytest.importorskip("torch", reason="torch reads .pth")
    path = tmp_path / f"weights.{suffix}"
    tensors = {name: torch.tensor(value) for name, value in weights.items()}
    tensors["local_agg.bias"] = torch.zeros(D, dtype=torch.bfloat16)
    if suffix == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(tensors, path)
        del tensors["local_agg.bias"]
        pytest.importorskip("safetensors.torch").save_file(tensors, path)
    else:
        torch.save(tensors, path)
    call("--backbone", "gcegnn", "--weights", path, "--dataset", tiny.path, "--out", tmp_path / "run")
    table = nnx.to_pure_dict(load_run(tmp_path / "run").params)["items"]
    np.testing.assert_array_equal(table, weights["embedding.weight"])
    assert ("not used by gcegnn: local_agg.bias" in capsys.readouterr().out) == (suffix != "safetensors")


class Boom:
    def __reduce__(self):
        return print, ("executed",)


def test_pickled_classes_are_refused(tmp_path, imports, weights):
    torch = pytest.importorskip("torch", reason="torch reads .pth")
    path = tmp_path / "weights.pth"
    torch.save(weights | {"embedding.weight": Boom()}, path)
    assert "something else than plain tensors" in imports(path)


def test_objects_are_refused(tmp_path, imports, weights):
    path = tmp_path / "weights.npz"
    np.savez(path, **weights | {"embedding.weight": np.array([{}], object)})
    assert "weights.npz" in imports(path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda w: {k: v for k, v in w.items() if k != "w_1"}, "no w_1"),
        (lambda w: {k: v for k, v in w.items() if k != "embedding.weight"}, "no embedding.weight"),
        (lambda w: w | {"embedding.weight": w["embedding.weight"][:-1]}, "30 rows"),
        (lambda w: w | {"embedding.weight": w["embedding.weight"][0]}, "embedding.weight has shape (6,)"),
        (lambda w: w | {"embedding.weight": w["embedding.weight"][:, :0]}, "embedding.weight has shape (31, 0)"),
        (lambda w: w | {"pos_embedding.weight": np.float32(3)}, "pos_embedding.weight has shape ()"),
        (lambda w: w | {"w_1": w["w_1"].T}, "w_1 has shape (6, 12)"),
        (lambda w: w | {"w_1": w["w_1"].astype("U9")}, "w_1 holds something else"),
        (lambda w: w | {"w_1": np.full_like(w["w_1"], np.nan)}, "w_1 holds something else"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, imports, weights, change, complaint):
    np.savez(tmp_path / "weights.npz", **change(weights))
    assert complaint in imports(tmp_path / "weights.npz")


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pth", "txt"])
@pytest.mark.parametrize(
    "content", [b"", b"hello\n", b"PK\x03\x04cut off", b"\x93NUMPY"], ids=["", "text", "zip", "npy"]
)
def test_foreign_files_are_named(tmp_path, imports, suffix, content):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    assert path.name in imports(path)


def test_cut_and_misnamed_files_are_named(tmp_path, imports, weights):
    path = tmp_path / "weights.npz"
    np.savez_compressed(path, **weights)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        assert path.name in imports(path)
    path.write_bytes(whole[:200] + bytes(200) + whole[400:])
    assert path.name in imports(path)
    with path.open("wb") as file:
        np.save(file, weights["w_1"])
    assert path.name in imports(path)
    assert "nowhere.npz" in imports(tmp_path / "nowhere.npz")
    assert tmp_path.name in imports(tmp_path)


def test_bad_flags_are_named(tmp_path, imports, weights):
    np.savez(tmp_path / "weights.npz", **weights)
    assert "--n-neighbors 0" in imports(tmp_path / "weights.npz", "--n-neighbors", 0)
    of_another = imports(tmp_path / "weights.npz", "--n-neighbors", 5, "--backbone", "srgnn")
    assert "--n-neighbors 5: srgnn has no such setting" in of_another
    assert "would replace" in imports(tmp_path / "weights.npz", "--out", tmp_path, "--overwrite")


def test_released_checkpoint(tmp_path):
    """The authors' GCE-GNN for ML-1M: the numbers of its schema, and its own top 50."""
    weights = shared("golden", "released_gcegnn_ml-1m.npz")
    raw = shared("data", "ml-1m", "sessions.npz")
    dataset, run = tmp_path / "ml-1m", tmp_path / "run"
    prepare.main(["npz", "--raw", str(raw), "--out", str(dataset)])
    call("--backbone", "gcegnn", "--weights", weights, "--dataset", dataset, "--out", run)
    loaded = load_run(run)
    found = summarise(loaded.score_test())["raw"]
    due = {"hr@5": 4.5994, "hr@10": 8.0950, "hr@20": 12.9119, "mrr@5": 1.8727, "mrr@10": 2.3311, "mrr@20": 2.6550}
    assert {metric: found[metric] for metric in due} == pytest.approx(due, abs=1e-3)
    top = Scorer(loaded.program, loaded.dataset.test, loaded.settings.n_positions).top(
        loaded.params, 50, exclude_seen=False, progress=lambda _: None
    )
    with np.load(raw) as arrays:
        theirs = arrays["test_candidates"]
    same = (np.sort(top, axis=1) == np.sort(theirs, axis=1)).all(axis=1)
    assert same.mean() >= 0.99
