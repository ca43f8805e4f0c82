"""``--engine retrieval``: no LLM. The candidates whose titles are closest to the session's, by encoder cosine."""

from typing import Any

import numpy as np
from rich import get_console
from rich.progress import Progress

from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from llm_stage.config import RunConfig
from llm_stage.encoder import Encoder, encode_catalogue, load_encoder
from llm_stage.engines.base import Answer, Engine, Questions


def build(config: RunConfig, dataset: SessionDataset) -> Engine:
    """The engine that `RunConfig` describes.

    Raises:
      InputError: the data set has no titles, or the encoder cannot be had.
    """
    if dataset.titles is None:
        raise InputError(f"{dataset.path}: has no titles, and retrieval compares titles")
    return Retrieval(dataset.titles, load_encoder(config.encoder, config.pooling), config)


class Retrieval:
    """Picks the ``max_intents`` candidates with the highest cosine to the mean of the session's title vectors.

    Deterministic; of equal candidates the better ranked comes first. Items without a title are never picked and do not
    count for the mean; a session without any title gets an empty answer.
    """

    label = "no LLM (retrieval)"

    def __init__(self, titles: list[str], encoder: Encoder, config: RunConfig) -> None:
        self.titles = titles
        self.encoder = encoder
        self.max_intents = config.max_intents
        self.batch_size = config.batch_size or 512
        self.identity: dict[str, Any] = {"engine": "retrieval", **encoder.identity, "max_intents": config.max_intents}
        self._vectors: np.ndarray | None = None

    @property
    def vectors(self) -> np.ndarray:
        """float32 [n_items + 1, d_text]: unit vectors of the titles, zeros where there is none."""
        if self._vectors is None:
            titled = np.array([bool(title.strip()) for title in self.titles])
            with Progress(disable=not get_console().is_terminal) as bar:
                task = bar.add_task("titles encoded", total=int(titled.sum()))
                self._vectors = encode_catalogue(self.encoder, self.titles, lambda n: bar.advance(task, n))
            self._vectors[titled] /= np.linalg.norm(self._vectors[titled], axis=1, keepdims=True)
        return self._vectors

    def answer(self, questions: Questions) -> list[Answer]:
        """See `Engine`."""
        items, offsets = questions.sessions.items, questions.sessions.offsets
        # The mean's direction is the sum's, and a positive length changes no order.
        total = np.add.reduceat(self.vectors[items], offsets[:-1])
        candidates = np.asarray(questions.candidates)
        cosine = (self.vectors[candidates] @ total[:, :, None])[:, :, 0]
        known = np.any(self.vectors, axis=1)
        cosine[~known[candidates] | ~np.any(total, axis=1)[:, None]] = -np.inf
        best = np.argsort(-cosine, axis=1, kind="stable")
        ranked = np.take_along_axis(candidates, best, 1).tolist()
        usable = np.isfinite(cosine).sum(1).tolist()
        # One item may be a candidate twice: each counts once.
        return [
            Answer(tuple(dict.fromkeys(row[:n]))[: self.max_intents]) for row, n in zip(ranked, usable, strict=True)
        ]

    def preview(self, questions: Questions) -> list[tuple[str, int]]:
        """See `Engine`: there are no prompts."""
        return []
