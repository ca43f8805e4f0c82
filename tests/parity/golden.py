"""Golden files of the original models: where they are, and how one is laid onto this project's model."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dmsrec_jax.backbones import BACKBONES
from dmsrec_jax.data import Sessions
from dmsrec_jax.graphs import Budget, IntentRows, SessionGraphs, build_graphs
from dmsrec_jax.import_torch import assign, locate, torch_keys, torch_layout
from dmsrec_jax.item_graph import ItemGraph, Members, build_members
from dmsrec_jax.layers import Fixed
from dmsrec_jax.model import ModelSettings, SessionModel
from dmsrec_jax.orders import batch_budget

FOLDER = Path(os.environ.get("DMSREC_GOLDEN_DIR", Path(__file__).parents[3] / "shared" / "golden"))


def files(form: str) -> list:
    """Test parameters: golden files of known backbones in ``plain`` or ``fused`` form, or one that says why not."""
    paths = [path for name in BACKBONES for path in sorted(FOLDER.glob(f"{name}_{form}*.npz"))]
    paths = [path for path in paths if path.stem != "miasrec_plain_alpha1.5"]  # see tests/backbones/test_miasrec.py
    absent = pytest.mark.skip(reason=f"no {form} golden files of known backbones in {FOLDER}; set DMSREC_GOLDEN_DIR")
    return [pytest.param(path, id=path.stem) for path in paths] or [pytest.param(None, marks=absent, id="absent")]


@dataclass(frozen=True)
class Golden:
    """One file's arrays, and this project's model with its parameters."""

    name: str
    """The backbone."""
    arrays: dict[str, np.ndarray]
    keys: dict[str, str]
    graphdef: nnx.GraphDef
    constants: nnx.State
    weights: tuple[nnx.State, nnx.State]
    """Those that are trained, and those that the released optimiser misses."""
    graphs: SessionGraphs
    budget: Budget

    def in_torch_layout(self, trees: tuple[nnx.State, nnx.State]) -> dict[str, np.ndarray]:
        """Weights or gradients by state-dict key."""
        pure = nnx.to_pure_dict(nnx.merge_state(*trees))
        found = {}
        for key, path in self.keys.items():
            holder, name = locate(pure, path)
            found[key] = np.asarray(torch_layout(holder[name], path))
        return found


def load(path: Path, **settings: Any) -> Golden:
    """Reads a golden file and builds the model it describes; ``settings`` of one that differs."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    name, form = path.stem.split("_")[:2]
    backbone, fused = BACKBONES[name], form == "fused"
    if fused and not hasattr(backbone, "RELEASED"):
        pytest.skip(f"{path.name}: {name} has no released fusion")
    weights = {key.removeprefix("param/"): value for key, value in arrays.items() if key.startswith("param/")}
    lengths = arrays["lengths"]
    intents = one_intent_each(arrays["explicit"], arrays["latent"]) if fused else None
    graphs = build_graphs(unpadded(arrays["sessions"]), arrays["targets"], intents)
    table = next(key for key, path in backbone.TORCH_KEYS.items() if path.startswith("items"))
    d = weights[table].shape[1]
    of_file = ModelSettings(
        name,
        int(arrays["n_items"]),
        d,
        "dot",
        n_positions=len(weights.get("pos_embedding.weight", arrays["sessions"].T)),
        semantics="released" if fused else None,
        d_text=arrays["explicit"].shape[1],
        released_padding=arrays["sessions"].shape[1],
        order=weights["alpha"].size if name == "msgifsr" else 1,
        inner=64,
    )
    model = SessionModel(replace(of_file, **settings), item_graph(arrays), rngs=nnx.Rngs(params=jax.random.key(0)))
    graphdef, params, fixed, constants = nnx.split(model, nnx.Param, Fixed, ...)
    whole = nnx.merge_state(params, fixed)
    keys = state_keys(name, whole, fused)
    assign(whole, weights, keys, source=path)
    params, fixed = nnx.split_state(whole, nnx.Param, Fixed)
    budget = batch_budget(graphs, len(lengths), 1)
    return Golden(name, arrays, keys, graphdef, constants, (params, fixed), jax.tree.map(jnp.asarray, graphs), budget)


def unpadded(rows: np.ndarray) -> Sessions:
    """Sessions from rows of item ids with zeros behind them."""
    return Sessions(rows[rows > 0], np.append(0, np.cumsum((rows > 0).sum(1))))


def item_graph(arrays: dict[str, np.ndarray]) -> ItemGraph | Members | None:
    """What a file says of all sessions: GCE-GNN's neighbours as they are, or the sessions of DHCN's hypergraph."""
    if "graph_sessions" in arrays:
        return build_members(unpadded(arrays["graph_sessions"]), int(arrays["n_items"]))
    return ItemGraph(arrays["adj"], arrays["num"].astype(np.float32)) if "adj" in arrays else None


def state_keys(name: str, weights: nnx.State, fused: bool) -> dict[str, str]:
    """State-dict keys of a plain or fused model; what is fused replaces the backbone's own last map."""
    keys = torch_keys(name, weights)
    if not fused:
        return keys
    keys = {key: path for key, path in keys.items() if not key.startswith(("linear_transform", "fc_sr"))}
    keys |= {"w": "semantics.w.T", "b": "semantics.b", "linear_transform.weight": "semantics.fusion_w.T"}
    return keys | ({"linear_transform.bias": "semantics.fusion_b"} if BACKBONES[name].RELEASED.bias else {})


def one_intent_each(explicit: np.ndarray, latent: np.ndarray) -> IntentRows:
    """Sessions whose only explicit and only latent intent are these vectors."""
    n = 2 * len(explicit)
    embeddings = np.stack([explicit, latent], axis=1).reshape(n, -1)
    return IntentRows(np.append(np.arange(n + 1), [n, n]).astype(np.int32), np.arange(n, dtype=np.int32), embeddings)
