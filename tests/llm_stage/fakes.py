"""An engine and an encoder that need no model, for tests of everything around them."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dmsrec_jax.data import SessionDataset
from llm_stage import finish, merge, run
from llm_stage.config import RunConfig
from llm_stage.engines.base import Answer, Questions


class FakeEngine:
    """Names three candidates that the session decides. ``hook`` sees every batch first."""

    label = "fake"
    hook: Callable[[Questions], None] = staticmethod(lambda questions: None)

    def __init__(self, config: RunConfig) -> None:
        self.identity: dict[str, Any] = {"engine": "fake", "model": config.model, "limits": {"m": config.max_intents}}
        self.batch_size = config.batch_size or 4

    def answer(self, questions: Questions) -> list[Answer]:
        type(self).hook(questions)
        return [self.name(questions, row) for row in range(len(questions.candidates))]

    def name(self, questions: Questions, row: int) -> Answer:
        session, candidates = questions.sessions[row], questions.candidates[row].tolist()
        start = int(session.sum()) % len(candidates)
        picks = tuple(dict.fromkeys((candidates[start:] + candidates)[:3] + session[-1:].tolist()))
        return Answer(picks, f"I name {picks}; ü\n", 1, 2, 10 * len(session), 5, 3)

    def preview(self, questions: Questions) -> list[tuple[str, int]]:
        return [(f"prompt {session}", 7) for session in questions.sessions.lengths.tolist()]


def build(config: RunConfig, dataset: SessionDataset) -> FakeEngine:
    return FakeEngine(config)


class HashEncoder:
    """Each title's vector comes from its SHA-256."""

    name, pooling, revision, encoded = "hash", "masked", "1", 0
    d_text = 8

    def encode(self, titles: Sequence[str], progress: Callable[[int], None] = lambda _: None) -> np.ndarray:
        digests = [np.frombuffer(hashlib.sha256(title.encode()).digest()[:8], np.uint8) for title in titles]
        return np.stack(digests).astype(np.float32) / 255


def install(set_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """Puts the fakes where ``--engine retrieval`` and the encoder would be."""
    set_attribute(run, "ENGINES", run.ENGINES | {"retrieval": __name__})
    for module in (run, merge):
        set_attribute(module, "check_encoder", lambda name: None)
    set_attribute(finish, "load_encoder", lambda name, pooling: HashEncoder())
    set_attribute(finish, "encoder_revision", lambda name: HashEncoder.revision)
