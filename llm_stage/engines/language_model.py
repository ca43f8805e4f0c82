"""What the LLM engines have in common: they continue chats and score texts; `decode` makes intents of that."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from dmsrec_jax.errors import InputError
from llm_stage.prompts import Chat


class NumberList(NamedTuple):
    """The grammar of a structured answer: ``[3, 12]``, numbers from 1 to ``largest``, 1 to ``longest`` of them."""

    largest: int
    longest: int

    @property
    def regex(self) -> str:
        number = "(" + "|".join(map(str, range(1, self.largest + 1))) + ")"
        return rf"\[{number}(, {number}){{0,{self.longest - 1}}}\]"

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema; an object, as some services take no list at the top."""
        numbers = {"type": "integer", "enum": list(range(1, self.largest + 1))}
        intents = {"type": "array", "items": numbers, "minItems": 1, "maxItems": self.longest}
        return {
            "type": "object",
            "properties": {"intents": intents},
            "required": ["intents"],
            "additionalProperties": False,
        }

    def begins(self, text: str) -> bool:
        """Whether some answer begins with ``text``."""
        if not text:
            return True
        body, closed, rest = text[1:].partition("]")
        if text[0] != "[" or rest:
            return False
        *done, last = body.split(",")
        if len(done) >= self.longest or not all(self._is_number(n, place) for place, n in enumerate(done)):
            return False
        # Every beginning of a number of the list is one itself.
        begun = not closed and last in ("", " ")[: 1 + bool(done)]
        return begun or self._is_number(last, len(done))

    def _is_number(self, text: str, place: int) -> bool:
        digits = text[1:] if place and text[:1] == " " else text
        if place and digits == text:
            return False
        return digits.isdecimal() and digits[0] != "0" and len(digits) <= 9 and int(digits) <= self.largest


class Generation(NamedTuple):
    """What a model wrote."""

    text: str | None
    """None where the prompt is too long for the model."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cut: bool = False
    """Whether it was stopped before it ended by itself, as at ``max_new_tokens``."""
    refused: bool = False
    """Whether a content filter let nothing through, of the question or of the answer."""


class Continuations(NamedTuple):
    """Texts that may follow one prefix."""

    prefix: str
    texts: Sequence[str]


class Likelihoods(NamedTuple):
    """How likely a model finds continuations."""

    log_likelihoods: np.ndarray | None
    """float64 [n]: log P(text | prefix), summed over tokens; None where one is too long for the model."""
    prompt_tokens: int = 0
    cached_tokens: int = 0


def check_room(max_new_tokens: int, longest: int) -> None:
    """Refuses answers beside which no prompt fits a model that takes ``longest`` tokens: all would be empty."""
    if max_new_tokens >= longest:
        raise InputError(f"--max-new-tokens {max_new_tokens}: the model takes {longest:,}, prompt and answer")


class LanguageModel(Protocol):
    """A chat model. Where it cannot go on it raises `UnfinishedError`, or another `InputError`."""

    label: str
    """Model and engine, such as "Qwen2.5-7B-Instruct (vLLM)"."""
    identity: dict[str, Any]
    """Engine, model, revision, number format, as JSON."""
    batch_size: int
    """Prompts per call that suit it."""

    def chat(
        self, chats: Sequence[Chat], max_new_tokens: int, grammars: Sequence[NumberList] | None
    ) -> list[Generation]:
        """Answers greedily; with ``grammars``, each answer keeps to its own."""
        ...

    def score(self, batch: Sequence[Continuations]) -> list[Likelihoods]:
        """Log-likelihoods of continuations."""
        ...

    def preview(self, prompt: Chat | str) -> tuple[str, int]:
        """A prompt as the model sees it, and its tokens (estimated where there is no tokenizer)."""
        ...
