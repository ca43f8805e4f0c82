"""``--engine openai``: any endpoint that speaks the OpenAI protocol (vllm serve, Ollama, a cloud service).

Structured answers use ``response_format`` with a JSON schema, which all three take.
"""

import os
import random
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx
import numpy as np

from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from llm_stage.config import RunConfig
from llm_stage.decode import llm_engine
from llm_stage.engines.base import Engine, UnfinishedError
from llm_stage.engines.chat_tokenizer import messages
from llm_stage.engines.language_model import Continuations, Generation, Likelihoods, NumberList
from llm_stage.prompts import Chat

KEY = "OPENAI_API_KEY"
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds."""
OF_CLIENT = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"}
"""Variables that the client reads by itself."""
BUSY = {408, 409, 425, 429}
"""Statuses beside 5xx after which a request is tried again."""
RENAMED = {"max_tokens": "max_completion_tokens", "temperature": None, "seed": None}
"""What newer models of OpenAI refuse, and its name for them; None: they do without."""
CHARACTERS_PER_TOKEN = 4
"""For the estimates of `OpenAIModel.preview`; the endpoint has the tokenizer."""

UNREADABLE = (ValueError, AttributeError, LookupError, TypeError, OverflowError, RecursionError)
"""What reading a reply raises where it is not as the protocol has it."""
MOST_TOKENS = 2**31 - 1
"""Of one question; a larger number is none."""

T = TypeVar("T")
R = TypeVar("R")


def build(config: RunConfig, dataset: SessionDataset) -> Engine:
    """The engine that `RunConfig` describes; the endpoint is met with the first batch.

    Raises:
      InputError: the address is none, or the key, or a variable that the client reads (such as HTTP_PROXY).
    """
    return llm_engine(OpenAIModel(config), config, dataset)


class TooLongError(Exception):
    """The endpoint says that a prompt does not fit its model."""


class FilteredError(InputError):
    """The endpoint's content filter refuses a prompt, however often it is asked."""


class OpenAIModel:
    """A `LanguageModel`."""

    def __init__(self, config: RunConfig) -> None:
        check_address(config.base_url)
        self.url = config.base_url.rstrip("/")
        self.name = config.model
        self.label = f"{config.model} (OpenAI-compatible endpoint)"
        self.retries, self.concurrency = config.retries, config.concurrency
        self.batch_size = 4 * config.concurrency
        # Not the address: an endpoint may move while the job goes on.
        self.identity: dict[str, Any] = {"engine": "openai", "model": config.model, "revision": config.revision}
        self.key = os.environ.get(KEY, "").strip()  # files and secret stores end it with a line break
        if not (self.key.isascii() and self.key.isprintable()):  # refused here: the client's error would show it
            raise InputError(f"{KEY}: holds characters that no key has")
        try:
            self.client = httpx.Client(
                timeout=config.timeout,
                limits=httpx.Limits(max_connections=config.concurrency),
                headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            )
        except (httpx.InvalidURL, ImportError, ValueError, OSError) as error:
            named = ", ".join(name for name in os.environ if name.upper() in OF_CLIENT)
            raise InputError(f"{named or '--engine openai'}: {error}") from None
        self.random = random.Random(0)
        self.refused: frozenset[str] = frozenset()
        """Of `RENAMED`, what this model turned out to refuse."""

    def preview(self, prompt: Chat | str) -> tuple[str, int]:
        text = f"{prompt.system}\n\n{prompt.user}" if isinstance(prompt, Chat) else prompt
        return text, -(-len(text) // CHARACTERS_PER_TOKEN)

    def chat(
        self, chats: Sequence[Chat], max_new_tokens: int, grammars: Sequence[NumberList] | None
    ) -> list[Generation]:
        """See `LanguageModel`."""

        def ask(row: int, stop: threading.Event) -> Generation:
            body = {"messages": messages(chats[row]), "max_tokens": max_new_tokens, "temperature": 0, "seed": 0}
            if grammars is not None:
                schema = {"name": "intents", "strict": True, "schema": grammars[row].schema}
                body["response_format"] = {"type": "json_schema", "json_schema": schema}
            try:
                return self._post("chat/completions", body, _generation, stop)
            except TooLongError:
                return Generation(None)
            except FilteredError:
                return Generation("", refused=True)

        return self._at_once(ask, range(len(chats)))

    def score(self, batch: Sequence[Continuations]) -> list[Likelihoods]:
        """See `LanguageModel`. log P(text | prefix) = log P(prefix + text) − log P(prefix), both echoed."""

        def ask(one: Continuations, stop: threading.Event) -> Likelihoods:
            prompts = [one.prefix, *(one.prefix + text for text in one.texts)]
            try:
                body = {"prompt": prompts, "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
                found, usage = self._post("completions", body, _log_probabilities, stop)
            except TooLongError:
                return Likelihoods(None)
            sums = np.array([found.get(n, np.nan) for n in range(len(prompts))])
            if np.isnan(sums).any():
                raise InputError(
                    f"--base-url {self.url}: gives no log-probabilities of prompts (completions with echo), which "
                    "--decode score needs; vllm serve does"
                )
            return Likelihoods(sums[1:] - sums[0], *usage[:2])

        return self._at_once(ask, batch)

    def _at_once(self, ask: Callable[[T, threading.Event], R], of: Iterable[T]) -> list[R]:
        """Asks concurrently; the first failure ends the others' waiting.

        Raises:
          UnfinishedError: see `_post`; with what the others came to.
        """
        stop = threading.Event()
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(ask, one, stop) for one in of]
            try:
                return [future.result() for future in futures]
            except BaseException as error:
                stop.set()
                pool.shutdown(cancel_futures=True)
                if not isinstance(error, InputError):
                    raise
                whole = {n: f for n, f in enumerate(futures) if not f.cancelled() and f.exception() is None}
                raise UnfinishedError(str(error), {n: f.result() for n, f in whole.items()}) from None

    def _post(self, path: str, body: dict[str, Any], read: Callable[[Any], R], stop: threading.Event) -> R:
        """What ``read`` finds in a reply's JSON, after as many tries as it takes.

        Raises:
          InputError: the endpoint is dead, or refuses, as it does where no prompt leaves room for so long an answer.
          FilteredError: it refuses what this prompt holds.
          TooLongError: the prompt does not fit.
        """
        problem = ""
        for attempt in range(self.retries + 1):
            wait = 0.0
            try:
                response = self._send(path, body)
            except httpx.RequestError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                problem = f"{response.status_code}: {_reason(response)}"
                if response.status_code == 200:
                    try:
                        return read(response.json())
                    except UNREADABLE:
                        if not _error(response):
                            problem = "200 without what the protocol has in it"
                elif response.status_code not in BUSY and response.status_code < 500:
                    if response.status_code == 400 and _error(response).get("code") == "content_filter":
                        raise FilteredError(self._line(path, problem))
                    if response.status_code in {400, 413, 422}:
                        if _allows_no_prompt(_reason(response), body["max_tokens"]):
                            raise InputError(self._line(path, f"{problem}; lower --max-new-tokens"))
                        if _says_too_long(response):
                            raise TooLongError
                    raise InputError(self._line(path, problem))
                wait = _seconds(response.headers.get("retry-after"))
            if attempt < self.retries:
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt)
                # Half of the pause at random, so that clients do not come back all at once.
                if stop.wait(max(min(wait, LONGEST_PAUSE), pause * (0.5 + 0.5 * self.random.random()))):
                    break
        raise InputError(self._line(path, f"{problem} (after {attempt + 1} tries)"))

    def _send(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """The reply to a request in the words that this model takes."""
        while True:
            names = {name: RENAMED[name] if name in self.refused else name for name in body}
            accepted = {name: body[old] for old, name in names.items() if name}
            response = self.client.post(f"{self.url}/{path}", json={"model": self.name, **accepted})
            name = _refused(response)
            if name not in RENAMED or name not in accepted:
                return response
            self.refused |= {name}

    def _line(self, path: str, problem: str) -> str:
        hint = f"; set {KEY}" if problem.startswith("401") else ""
        line = f"--base-url {self.url}: {path}: {problem}{hint}"
        return line.replace(self.key, "…") if self.key else line


def check_address(address: str) -> None:
    """Refuses what no request can be sent to.

    Raises:
      InputError: it is no http(s) address with a host.
    """
    if not address.startswith(("http://", "https://")):
        raise InputError(f"--base-url {address}: http:// or https:// is due")
    try:
        host = httpx.URL(address).raw_host.decode()
        host.encode("idna")  # as sockets do
    except (httpx.InvalidURL, ValueError) as error:
        raise InputError(f"--base-url {address}: {error}") from None
    if not host:
        raise InputError(f"--base-url {address}: has no host")


def _error(response: httpx.Response) -> dict[str, Any]:
    """The error that an endpoint tells, with `message` and perhaps `code` and `param`; {} where it tells none."""
    try:
        error = response.json()["error"]
    except UNREADABLE:
        return {}
    return error if isinstance(error, dict) else {"message": error}


def _reason(response: httpx.Response) -> str:
    """What an endpoint says went wrong, in at most 300 characters that a terminal prints."""
    text = str(_error(response).get("message", response.text or response.reason_phrase))[:300]
    return "".join(c for c in text if c.isprintable() or c.isspace())


def _refused(response: httpx.Response) -> str | None:
    """The part of a request that the endpoint says its model does not take; None where it says something else."""
    error = _error(response) if response.status_code == 400 else {}
    return str(error.get("param")) if str(error.get("code")).startswith("unsupported") else None


def _allows_no_prompt(reason: str, tokens: int) -> bool:
    """Whether an answer of so many tokens is too long beside any prompt, by the context's size where it is told."""
    context = re.search(r"context (?:length|window|size)\D{0,9}(\d[\d,]*)", reason, re.IGNORECASE)
    if context:
        return tokens >= int(context[1].replace(",", ""))
    return re.search(r"max_(completion_)?tokens\b.*too large", reason) is not None


def _says_too_long(response: httpx.Response) -> bool:
    text = f"{_error(response).get('code')} {_reason(response)}".lower()
    return "context" in text and ("length" in text or "window" in text or "size" in text)


def _generation(reply: Any) -> Generation:
    choice = reply["choices"][0]
    text = choice["message"].get("content")
    if not isinstance(text, str | None):
        raise TypeError
    filtered = choice.get("finish_reason") == "content_filter"
    cut = filtered or choice.get("finish_reason") == "length"
    return Generation(text or "", *_usage(reply), cut=cut, refused=filtered and not text)


def _log_probabilities(reply: Any) -> tuple[dict[int, float], tuple[int, int, int]]:
    """Of each prompt that has them the sum over its tokens, and `_usage`."""
    sums = {}
    for choice in reply["choices"]:
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or []
        if len(logprobs) > 1:  # the first token has none
            sums[choice["index"]] = float(sum(logprobs[1:]))
    return sums, _usage(reply)


def _usage(reply: dict[str, Any]) -> tuple[int, int, int]:
    """Prompt, cached and output tokens; 0 for what is no number of tokens."""
    usage = reply.get("usage") or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    given = usage.get("prompt_tokens"), cached, usage.get("completion_tokens")
    prompt, cached, output = (n if isinstance(n, int) and 0 <= n <= MOST_TOKENS else 0 for n in given)
    return prompt, cached, output


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 0))
    except ValueError:  # a date
        return 0.0
