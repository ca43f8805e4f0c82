"""``python -m dmsrec_jax.import_torch``: weights of the original repositories as a run folder."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from dmsrec_jax import cli
from dmsrec_jax.backbones import BACKBONES, own_score, padded, reads
from dmsrec_jax.config import ImportTorchConfig, Order
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import staged_folder
from dmsrec_jax.item_graph import read_sessions
from dmsrec_jax.model import ModelSettings
from dmsrec_jax.recipe import check_padding, foreign_flags
from dmsrec_jax.runs import new_model, save_model, write_config


def import_torch(config: ImportTorchConfig) -> None:
    """Reads a state dict and writes a run folder."""
    if config.n_neighbors < 1:
        raise InputError(f"--n-neighbors {config.n_neighbors}: at least 1 is due")
    if "n_neighbors" in foreign_flags(config.backbone) and config.n_neighbors != ImportTorchConfig.n_neighbors:
        raise InputError(f"--n-neighbors {config.n_neighbors}: {config.backbone} has no such setting")
    dataset = SessionDataset.load(config.dataset)
    weights = read_weights(config.weights)
    settings = settings_of(weights, config, dataset)
    graph = read_sessions(reads(config.backbone), dataset.sessions, dataset.n_items, config.n_neighbors)
    program, params = new_model(settings, graph, jax.random.key(0))
    keys = torch_keys(config.backbone, params)
    assign(params, weights, keys, source=config.weights)
    inputs = config.weights, config.dataset
    with staged_folder(config.out, marker="model.json", overwrite=config.overwrite, reads=inputs) as staged:
        save_model(staged, settings, dataset, program, params)
        write_config(staged, config)
    unused = sorted(weights.keys() - keys.keys())
    console = Console(markup=False, highlight=False)
    if unused:
        console.print(f"not used by {config.backbone}: {', '.join(unused)}")
    if padded(config.backbone) and config.released_padding is None:
        console.print(f"{config.backbone} was trained with padding: its own scores need --released-padding")
    if settings.n_positions < dataset.longest:
        cut = f"of up to {dataset.longest} clicks of a session the last {settings.n_positions} are read"
        console.print(f"{cut}; only those count as seen")
    console.print(f"run folder: {config.out}", soft_wrap=True)


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """A state dict as numpy arrays, from ``.npz``, ``.safetensors`` or ``.pth`` / ``.pt``.

    Raises:
      InputError: an unreadable, foreign or unsafe file, or a missing package.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        if path.suffix in (".pth", ".pt"):
            import torch

            loaded = torch.load(path, map_location="cpu", weights_only=True)
            return {name: value.detach().float().numpy() for name, value in loaded.items()}
    except ImportError as error:
        raise InputError(f"{path}: reading {path.suffix} needs the package {error.name}") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except pickle.UnpicklingError:
        raise InputError(f"{path}: holds something else than plain tensors, so it is not loaded") from None
    except Exception as error:  # a foreign file makes its reader raise anything
        raise InputError(
            f"{path}: not a state dict: {next(iter(str(error).splitlines()), type(error).__name__)}"
        ) from None
    raise InputError(f"{path}: .npz, .safetensors, .pth or .pt is due")


def settings_of(weights: Mapping[str, np.ndarray], config: ImportTorchConfig, dataset: SessionDataset) -> ModelSettings:
    """Model settings from the weights' shapes.

    Raises:
      InputError: no item table, one for another catalogue, or a --released-padding that does not fit.
    """
    keys = {path: key for key, path in BACKBONES[config.backbone].TORCH_KEYS.items()}
    of_items, of_positions = keys.get("items") or keys["items[1:]"], keys.get("backbone.positions", "")
    table = weights.get(of_items)
    if table is None:
        raise InputError(f"{config.weights}: no {of_items}: not the weights of a {config.backbone}")
    for key in (of_items, of_positions):
        if key in weights and (weights[key].ndim != 2 or not weights[key].size):
            raise InputError(f"{config.weights}: {key} has shape {weights[key].shape}; a table is due")
    rows = dataset.n_items + ("items" in keys)
    if len(table) != rows:
        raise InputError(
            f"{config.weights}: {of_items} has {len(table)} rows; {dataset.path} with its {dataset.n_items} "
            f"items needs {rows}"
        )
    n_positions = len(weights[of_positions]) if of_positions in weights else dataset.longest
    n_positions -= config.backbone == "miasrec"  # the mean has a place of its own
    of_inner = keys.get("backbone.first.w_1.bias", "")
    inner = weights[of_inner].size if of_inner in weights else 256
    if n_positions < 1 or inner < 1:
        raise InputError(f"{config.weights}: {of_positions if n_positions < 1 else of_inner} has too few rows")
    order = weights["alpha"].size if config.backbone == "msgifsr" and "alpha" in weights else 1
    if order not in get_args(Order):
        raise InputError(f"{config.weights}: alpha has {order} weights; an order of 1 to 3 is due")
    padding = config.released_padding
    check_padding(padding, config.backbone, min(dataset.longest, n_positions))
    if padding is not None and of_positions in weights and padding > n_positions:
        raise InputError(f"--released-padding {padding}: {of_positions} has rows for {n_positions} clicks")
    score = own_score(config.backbone)
    sizes = table.shape[1], score, n_positions, config.n_neighbors
    return ModelSettings(config.backbone, dataset.n_items, *sizes, released_padding=padding, order=order, inner=inner)


def torch_keys(backbone: str, params: nnx.State) -> dict[str, str]:
    """Those of the backbone's ``TORCH_KEYS`` that this model has: fewer in an MSGIFSR of a lower order."""
    own = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(params)}
    return {key: path for key, path in BACKBONES[backbone].TORCH_KEYS.items() if _place(path) in own}


def assign(params: nnx.State, weights: Mapping[str, np.ndarray], keys: Mapping[str, str], *, source: Path) -> None:
    """Puts a state dict into a model's parameters, in place.

    Args:
      params: parameters of a new model of the same shapes.
      weights: torch layout (``Linear.weight`` is [out, in]).
      keys: a backbone's ``TORCH_KEYS``: state-dict key to parameter path, with ``.T`` where it is transposed and
        ``[1:]`` where it has no row for padding.
      source: named in errors.

    Raises:
      InputError: a key is missing, has another shape, or holds no finite numbers.
    """
    tree = nnx.to_pure_dict(params)
    for key, path in keys.items():
        if key not in weights:
            raise InputError(f"{source}: no {key}")
        holder, name = locate(tree, path)
        value = own_layout(weights[key], path)
        if value.shape != holder[name].shape:
            raise InputError(f"{source}: {key} has shape {weights[key].shape}; {holder[name].shape} is due")
        if not (np.issubdtype(value.dtype, np.floating) and np.isfinite(value).all()):
            raise InputError(f"{source}: {key} holds something else than finite numbers")
        holder[name] = jnp.asarray(value, jnp.float32)
    nnx.replace_by_pure_dict(params, tree)


def locate(tree: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The dictionary that holds a parameter, and its name in there."""
    *outer, name = _place(path).split(".")
    for part in outer:
        tree = tree[part]
    return tree, name


def _place(path: str) -> str:
    return path.removesuffix(".T").removesuffix("[1:]")


def torch_layout(value: Any, path: str) -> Any:
    """A parameter as the state dict has it: transposed, or without its row for padding, where the path says so."""
    return value[1:] if path.endswith("[1:]") else value.T if path.endswith(".T") else value


def own_layout(value: np.ndarray, path: str) -> np.ndarray:
    """The reverse of `torch_layout`; a row for padding is zeros."""
    return np.pad(value, ((1, 0), (0, 0))) if path.endswith("[1:]") else torch_layout(value, path)


def main(argv: Sequence[str] | None = None) -> None:
    cli.run(import_torch, ImportTorchConfig, argv, prog="python -m dmsrec_jax.import_torch")


if __name__ == "__main__":
    main()
