"""``--engine transformers``: for machines without vLLM. Batched; what prompts share is computed once."""

import copy
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LogitsProcessor, LogitsProcessorList

from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from llm_stage.config import RunConfig
from llm_stage.decode import llm_engine
from llm_stage.engines.base import Engine
from llm_stage.engines.chat_tokenizer import ChatTokenizer
from llm_stage.engines.language_model import Continuations, Generation, Likelihoods, NumberList, check_room
from llm_stage.engines.weights import Weights, find_weights
from llm_stage.prompts import Chat

PACKED = 1024
"""Tokens of continuations scored in one pass."""


def build(config: RunConfig, dataset: SessionDataset) -> Engine:
    """The engine that `RunConfig` describes. The weights are loaded with the first batch.

    Raises:
      InputError: no such model.
    """
    return llm_engine(TransformersModel(config), config, dataset)


class TransformersModel:
    """A `LanguageModel`."""

    def __init__(self, config: RunConfig) -> None:
        self.weights = find_weights(config.model, config.revision)
        self.label = f"{self.weights.name} (transformers)"
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.batch_size = 64 if self.device == "cuda" else 8
        self.dtype = config.dtype if config.dtype != "auto" or self.device == "cuda" else "float32"
        self.max_model_len = config.max_model_len
        self.identity: dict[str, Any] = {
            "engine": "transformers",
            "model": self.weights.name,
            "revision": self.weights.revision,
            "dtype": self.dtype,
            "max_model_len": config.max_model_len,
        }
        self.seen: list[int] = []
        """Tokens whose keys and values `cache` holds."""
        self.cache = DynamicCache()

    @functools.cached_property
    def tokenizer(self) -> ChatTokenizer:
        return ChatTokenizer(self.weights)

    @functools.cached_property
    def model(self) -> Any:
        """The network, loaded when first asked for."""
        return load(self.weights, self.dtype).to(self.device).eval()

    @functools.cached_property
    def longest(self) -> int:
        """Tokens of prompt and answer at most."""
        return self.max_model_len or getattr(self.model.config, "max_position_embeddings", None) or 1 << 30

    def preview(self, prompt: Chat | str) -> tuple[str, int]:
        return self.tokenizer.preview(prompt)

    @torch.inference_mode()
    def chat(
        self, chats: Sequence[Chat], max_new_tokens: int, grammars: Sequence[NumberList] | None
    ) -> list[Generation]:
        """See `LanguageModel`."""
        check_room(max_new_tokens, self.longest)
        prompts = [self.tokenizer.ids(chat) for chat in chats]
        rows = [row for row, ids in enumerate(prompts) if len(ids) + max_new_tokens <= self.longest]
        answers = [Generation(None)] * len(chats)
        if not rows:
            return answers
        kept = [prompts[row] for row in rows]
        # The last token stays out: the model must read something to go on.
        shared = min(_common(kept[0], ids, len(ids) - 1) for ids in kept)
        reused = self._read(kept[0][:shared])
        written = self._generate(
            kept, shared, max_new_tokens, None if grammars is None else [grammars[r] for r in rows]
        )
        for place, (row, ids) in enumerate(zip(rows, written, strict=True)):
            text = self.tokenizer.tokenizer.decode(ids, skip_special_tokens=True)
            cached = shared if place else reused
            # Without the end's token, so one that ended by itself is shorter.
            answers[row] = Generation(text, len(prompts[row]), cached, len(ids), cut=len(ids) == max_new_tokens)
        return answers

    def _generate(
        self, prompts: list[list[int]], shared: int, max_new_tokens: int, grammars: list[NumberList] | None
    ) -> list[list[int]]:
        """New tokens of each prompt; keys and values of their first ``shared`` tokens are in the cache."""
        width = max(map(len, prompts))
        pad = self.tokenizer.tokenizer.pad_token_id or 0
        # Padding stands between the shared part and the rest, so that all answers begin in one column.
        padded = [ids[:shared] + [pad] * (width - len(ids)) + ids[shared:] for ids in prompts]
        mask = [[1] * shared + [0] * (width - len(ids)) + [1] * (len(ids) - shared) for ids in prompts]
        cache = copy.deepcopy(self.cache) if shared else DynamicCache()
        if shared:
            cache.batch_repeat_interleave(len(prompts))
        ends = self._ends()
        processors = LogitsProcessorList()
        if grammars is not None:
            processors.append(KeepsToGrammar(grammars, self._pieces, ends, width))
        output = self.model.generate(
            torch.tensor(padded, device=self.device),
            attention_mask=torch.tensor(mask, device=self.device),
            past_key_values=cache,
            logits_processor=processors,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=pad,
            eos_token_id=ends,
        )
        return [list(itertools.takewhile(lambda i: i not in ends, row)) for row in output[:, width:].tolist()]

    @torch.inference_mode()
    def score(self, batch: Sequence[Continuations]) -> list[Likelihoods]:
        """See `LanguageModel`. All continuations of a prefix form one packed sequence, each blind to the others."""
        scored = []
        for prefix, texts in batch:
            start = self.tokenizer.ids(prefix)
            rest = [self.tokenizer.ids(text, start=False) for text in texts]
            tokens = len(start) + sum(map(len, rest))
            if len(start) + max(map(len, rest)) > self.longest:
                scored.append(Likelihoods(None))
                continue
            # The last token of the prefix comes with the continuations: it predicts their first.
            reused = self._read(start[:-1])
            found = np.concatenate([self._score(start[-1], part) for part in _portions(rest)])
            scored.append(Likelihoods(found, tokens, reused))
        return scored

    def _score(self, last: int, texts: list[list[int]]) -> np.ndarray:
        """Log-likelihoods of token sequences that follow what the cache holds and the token ``last``."""
        lengths = torch.tensor([len(ids) - 1 for ids in texts])
        packed = torch.tensor([last, *(i for ids in texts for i in ids[:-1])])
        owner = torch.cat([torch.tensor([-1]), torch.arange(len(texts)).repeat_interleave(lengths)])
        place = torch.cat([torch.tensor([0]), *(torch.arange(1, n + 1) for n in lengths.tolist())])
        past = len(self.seen)
        visible = (owner[:, None] == owner[None]) | (owner == -1)[None]
        visible &= torch.ones_like(visible).tril()
        mask = torch.zeros(len(packed), past + len(packed), dtype=self.model.dtype)
        mask[:, past:].masked_fill_(~visible, torch.finfo(self.model.dtype).min)
        logits = self.model(
            input_ids=packed[None].to(self.device),
            attention_mask=mask[None, None].to(self.device),
            position_ids=(past + place)[None].to(self.device),
            past_key_values=self.cache,
            use_cache=True,
        ).logits[0]
        self._crop(past)
        first = torch.cumsum(torch.cat([torch.tensor([1]), lengths[:-1]]), 0).tolist()
        # What predicts token t of a text: the packed token before it; of its first, the prefix's last.
        predictors = torch.tensor(
            [p for f, ids in zip(first, texts, strict=True) for p in (0, *range(f, f + len(ids) - 1))]
        )
        targets = torch.tensor([i for ids in texts for i in ids]).to(self.device)
        of_texts = torch.arange(len(texts)).repeat_interleave(lengths + 1)
        logits = logits[predictors.to(self.device)].float()
        tokens = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)
        return torch.zeros(len(texts), dtype=torch.float64).index_add(0, of_texts, tokens.cpu().double()).numpy()

    def _read(self, ids: list[int]) -> int:
        """Makes the cache hold exactly ``ids``; returns how many of them it held already."""
        kept = _common(self.seen, ids, len(ids))
        if kept < len(self.seen):
            self._crop(kept)
        if kept < len(ids):
            rest = torch.tensor([ids[kept:]], device=self.device)
            self.model(input_ids=rest, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.seen = ids
        return kept

    def _crop(self, tokens: int) -> None:
        """Leaves the first ``tokens`` in the cache."""
        if tokens == 0:
            self.cache = DynamicCache()
        elif (surplus := self.cache.get_seq_length() - tokens) > 0:
            self.cache.crop(-surplus)

    def _ends(self) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        ends = self.tokenizer.tokenizer.eos_token_id if ends is None else ends
        return ends if isinstance(ends, list) else [ends]

    @functools.cached_property
    def _pieces(self) -> dict[int, str]:
        """Tokens that can be part of a list of numbers, and what they stand for."""
        tokens = self.tokenizer.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer.tokenizer))))
        pieces = {i: token.replace("Ġ", " ").replace("▁", " ") for i, token in enumerate(tokens) if token}
        return {i: piece for i, piece in pieces.items() if set(piece) <= set("0123456789[], ")}


class KeepsToGrammar(LogitsProcessor):
    """Lets through only tokens with which each answer stays a list of its numbers."""

    def __init__(self, grammars: list[NumberList], pieces: dict[int, str], ends: list[int], prompt: int) -> None:
        self.grammars, self.pieces, self.ends, self.prompt = grammars, pieces, ends, prompt
        self.next_tokens = functools.cache(self._next_tokens)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        barred = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(input_ids[:, self.prompt :].tolist()):
            text = "".join(self.pieces.get(i, "") for i in ids)
            allowed = self.next_tokens(self.grammars[row], text)
            barred[row, allowed] = scores[row, allowed]
        return barred

    def _next_tokens(self, grammar: NumberList, text: str) -> list[int]:
        if text.endswith("]"):
            return self.ends
        return [i for i, piece in self.pieces.items() if grammar.begins(text + piece)]


def load(weights: Weights, dtype: str) -> Any:
    """The network of these weights.

    Raises:
      InputError: they are missing, damaged, or of an unknown kind.
    """
    gguf: dict[str, Any] = {"gguf_file": weights.gguf} if weights.gguf else {}
    try:
        return AutoModelForCausalLM.from_pretrained(
            weights.source,
            revision=weights.hub_revision,
            dtype=dtype,
            attn_implementation="sdpa",  # the one that takes the masks of packed texts everywhere
            trust_remote_code=False,
            **gguf,
        )
    except Exception as error:  # transformers raises many kinds
        raise InputError(f"--model {weights.source}: cannot be loaded: {error}") from None


def _common(a: list[int], b: list[int], most: int) -> int:
    """Length of the common beginning, at most ``most``."""
    pairs = itertools.islice(zip(a, b, strict=False), most)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _portions(texts: list[list[int]]) -> list[list[list[int]]]:
    """Consecutive texts of about `PACKED` tokens together."""
    ends = np.cumsum([len(ids) for ids in texts])
    cuts = np.flatnonzero(np.diff(ends // PACKED)) + 1
    return [texts[a:b] for a, b in itertools.pairwise([0, *cuts.tolist(), len(texts)])]
