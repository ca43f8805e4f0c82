"""Golden files of the original models: where they are, and how one is laid onto this project's model."""

import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dmsrec_jax.backbones import BACKBONES
from dmsrec_jax.data import Sessions
from dmsrec_jax.graphs import Budget, IntentRows, SessionGraphs, batch_budget, build_graphs
from dmsrec_jax.import_torch import assign, locate, torch_layout
from dmsrec_jax.item_graph import ItemGraph
from dmsrec_jax.layers import Fixed
from dmsrec_jax.model import ModelSettings, SessionModel

FOLDER = Path(os.environ.get("DMSREC_GOLDEN_DIR", Path(__file__).parents[3] / "shared" / "golden"))


def files(form: str) -> list:
    """Test parameters: golden files of known backbones in ``plain`` or ``fused`` form, or one that says why not."""
    paths = [path for name in BACKBONES for path in sorted(FOLDER.glob(f"{name}_{form}*.npz"))]
    absent = pytest.mark.skip(reason=f"no {form} golden files of known backbones in {FOLDER}; set DMSREC_GOLDEN_DIR")
    return [pytest.param(path, id=path.stem) for path in paths] or [pytest.param(None, marks=absent, id="absent")]


@dataclass(frozen=True)
class Golden:
    """One file's arrays, and this project's model with its parameters."""

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


def load(path: Path) -> Golden:
    """Reads a golden file and builds the model it describes."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    name, form = path.stem.split("_")[:2]
    backbone, fused = BACKBONES[name], form == "fused"
    if fused and not hasattr(backbone, "RELEASED"):
        pytest.skip(f"{path.name}: {name} has no released fusion")
    weights = {key.removeprefix("param/"): value for key, value in arrays.items() if key.startswith("param/")}
    lengths = arrays["lengths"]
    clicks = np.concatenate([row[:n] for row, n in zip(arrays["sessions"], lengths, strict=True)])
    intents = one_intent_each(arrays["explicit"], arrays["latent"]) if fused else None
    graphs = build_graphs(Sessions(clicks, np.append(0, np.cumsum(lengths))), arrays["targets"], intents)
    d = weights["embedding.weight"].shape[1]
    settings = ModelSettings(
        name,
        int(arrays["n_items"]),
        d,
        "dot",
        n_positions=len(weights.get("pos_embedding.weight", arrays["sessions"].T)),
        semantics="released" if fused else None,
        d_text=arrays["explicit"].shape[1],
    )
    item_graph = ItemGraph(arrays["adj"], arrays["num"].astype(np.float32)) if "adj" in arrays else None
    model = SessionModel(settings, item_graph, rngs=nnx.Rngs(params=jax.random.key(0)))
    graphdef, params, fixed, constants = nnx.split(model, nnx.Param, Fixed, ...)
    keys = torch_keys(backbone, fused)
    whole = nnx.merge_state(params, fixed)
    assign(whole, weights, keys, source=path)
    params, fixed = nnx.split_state(whole, nnx.Param, Fixed)
    budget = batch_budget(graphs, len(lengths), 1)
    return Golden(arrays, keys, graphdef, constants, (params, fixed), jax.tree.map(jnp.asarray, graphs), budget)


def torch_keys(backbone: ModuleType, fused: bool) -> dict[str, str]:
    """State-dict keys of a plain or fused model; what is fused replaces the backbone's own last map."""
    if not fused:
        return backbone.TORCH_KEYS
    keys = {key: path for key, path in backbone.TORCH_KEYS.items() if not key.startswith("linear_transform")}
    keys |= {"w": "semantics.w.T", "b": "semantics.b", "linear_transform.weight": "semantics.fusion_w.T"}
    return keys | ({"linear_transform.bias": "semantics.fusion_b"} if backbone.RELEASED.bias else {})


def one_intent_each(explicit: np.ndarray, latent: np.ndarray) -> IntentRows:
    """Sessions whose only explicit and only latent intent are these vectors."""
    n = 2 * len(explicit)
    embeddings = np.stack([explicit, latent], axis=1).reshape(n, -1)
    return IntentRows(np.append(np.arange(n + 1), [n, n]).astype(np.int32), np.arange(n, dtype=np.int32), embeddings)
