"""What every engine is given, and gives back."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from dmsrec_jax.data import Sessions
from dmsrec_jax.errors import InputError


class Questions(NamedTuple):
    """A batch of sessions whose intents are asked for."""

    sessions: Sessions
    """Clicks so far, item ids, oldest first."""
    candidates: np.ndarray
    """int32 [n, K], item ids, best first."""


class Answer(NamedTuple):
    """What an engine named for one session."""

    picks: tuple[int, ...]
    """Item ids in the order named, without duplicates: candidates, or (free decoding) items of the session."""
    text: str = ""
    """The answer as the model wrote it, for audits; "" where there is none."""
    invalid: int = 0
    """Named pieces that are neither a candidate nor an item of the session."""
    duplicates: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt tokens, those that a prefix cache spared."""
    output_tokens: int = 0
    refused: int = 0
    """1 where an endpoint's content filter let nothing through."""


class UnfinishedError(InputError):
    """An engine or model that cannot go on in the middle of a batch.

    Attributes:
      found: what it has of the batch, by place: answers of an engine, generations or likelihoods of a model.
    """

    def __init__(self, message: str, found: Mapping[int, Any]) -> None:
        super().__init__(message)
        self.found = found


class Engine(Protocol):
    """Names intents. An engine is built with the catalogue's titles and its own settings."""

    label: str
    """How its output is named wherever it is printed, such as "no LLM (retrieval)"."""
    identity: dict[str, Any]
    """All that can change an answer, as JSON: engine, model, revision, decoding, prompt hash, limits."""
    batch_size: int
    """Sessions per call that suit it."""

    def answer(self, questions: Questions) -> list[Answer]:
        """One answer per session, in order.

        Raises:
          InputError: the engine cannot go on (endpoint dead, weights missing); finished rows are safe.
          UnfinishedError: likewise, with the answers that it has of this batch.
        """
        ...

    def preview(self, questions: Questions) -> list[tuple[str, int]]:
        """The full prompt of each session and its tokens, without running the model; [] where there are no prompts."""
        ...
