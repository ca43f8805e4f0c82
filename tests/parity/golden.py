"""Golden files of the original models: where they are, and how one is laid onto this project's model."""

import os
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dmsrec_jax.backbones import BACKBONES
from dmsrec_jax.data import Sessions
from dmsrec_jax.graphs import Budget, SessionGraphs, batch_budget, build_graphs
from dmsrec_jax.import_torch import assign, locate, torch_layout
from dmsrec_jax.item_graph import ItemGraph
from dmsrec_jax.model import ModelSettings
from dmsrec_jax.runs import new_model
from dmsrec_jax.steps import ModelProgram

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
    program: ModelProgram
    params: nnx.State
    graphs: SessionGraphs
    budget: Budget

    def in_torch_layout(self, tree: nnx.State) -> dict[str, np.ndarray]:
        """Parameters or gradients by state-dict key."""
        pure = nnx.to_pure_dict(tree)
        found = {}
        for key, path in self.keys.items():
            holder, name = locate(pure, path)
            found[key] = np.asarray(torch_layout(holder[name], path))
        return found


def load(path: Path) -> Golden:
    """Reads a golden file and builds the model it describes."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    backbone = path.name.split("_")[0]
    weights = {key.removeprefix("param/"): value for key, value in arrays.items() if key.startswith("param/")}
    lengths = arrays["lengths"]
    clicks = np.concatenate([row[:n] for row, n in zip(arrays["sessions"], lengths, strict=True)])
    graphs = build_graphs(Sessions(clicks, np.append(0, np.cumsum(lengths))), arrays["targets"])
    n_items, d = int(arrays["n_items"]), weights["embedding.weight"].shape[1]
    positions = len(weights.get("pos_embedding.weight", arrays["sessions"].T))
    item_graph = ItemGraph(arrays["adj"], arrays["num"].astype(np.float32)) if "adj" in arrays else None
    program, params = new_model(ModelSettings(backbone, n_items, d, "dot", positions), item_graph, jax.random.key(0))
    keys = BACKBONES[backbone].TORCH_KEYS
    assign(params, weights, keys, source=path)
    budget = batch_budget(graphs, len(lengths), 1)
    return Golden(arrays, keys, program, params, jax.tree.map(jnp.asarray, graphs), budget)
