"""Codes that train with the click: what moves them, and that every reader of a run has the same ones."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from em3_jax import train
from em3_jax.core import trees
from em3_jax.data.codes import with_codes
from em3_jax.data.format import open_dataset
from em3_jax.export import codes as command
from em3_jax.export import command as export
from em3_jax.export.vectors import export_vectors
from em3_jax.serving import store
from em3_jax.serving.service import Model
from em3_jax.training import experiment
from em3_jax.training.run import Run
from tests.conftest import user_error
from tests.export.served_runs import PLAIN, expected_logits, make_requests
from tests.export.test_codes_command import _asked
from tests.grown_tables import grown
from tests.training.test_growth import settings
from tests.training.test_sharding import check_equal, on_meshes

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(40)]

LEVELS, SIZE = 3, 5


def config(dataset, **model) -> dict:
    result = settings(dataset)
    result["model"]["quantiser"] |= {"levels": LEVELS, "size": SIZE}
    for name, value in model.items():
        result["model"][name] = value
    return result


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict:
    """A dataset, a later one, and a run with a quantiser on the first."""
    root = tmp_path_factory.mktemp("click_codes")
    first, later = grown(root / "first", later=False), grown(root / "later", later=True)
    train.train(config(first), root / "run")
    return {"first": first, "later": later, "run": root / "run"}


def step(parts, state, batch):
    copied = jax.tree.map(lambda leaf: leaf.copy(), state)  # which the step uses up
    return parts.program.train_step(copied, parts.work.constants, parts.program.place(batch))


def test_the_click_moves_the_fusion_module_and_through_it_the_codebooks(world):
    settings_ = config(world["first"])
    settings_["model"]["cic"]["weight"] = settings_["model"]["quantiser"]["commitment"] = 0.0
    parts = experiment.build(settings_)
    start, batch = parts.program.init(), parts.work.source[0]
    flipped = batch | {"label": 1 - batch["label"]}
    (one, said), (other, _) = (step(parts, start, labelled) for labelled in (batch, flipped))
    both = (trees.named_leaves(state.params["model"]["fusion"]) for state in (one, other))
    apart = [np.abs(a - b).max() for a, b in zip(*map(dict.values, both), strict=True)]
    assert max(apart) > 1e-4
    # The first step's codebooks are of the vectors before it; the second's of what the clicks have made of these.
    books = lambda state: np.asarray(state.params["model"]["quantiser"]["codebooks"])  # noqa: E731
    np.testing.assert_array_equal(books(one), books(other))
    assert np.abs(books(one) - books(start)).max() > 0
    (one, _), (other, _) = (step(parts, state, parts.work.source[1]) for state in (one, other))
    assert np.abs(books(one) - books(other)).max() > 1e-6
    assert 0 < said["code_usage"] <= 1 <= said["code_perplexity"] <= SIZE and said["quantiser_loss"] > 0


def test_usage_and_perplexity_are_logged(world):
    lines = [json.loads(line) for line in (world["run"] / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert any({"train/code_usage", "train/code_perplexity", "train/quantiser_loss"} <= set(line) for line in lines)


def test_the_codes_of_a_run_stand_for_its_vectors_and_can_be_fields_of_another(world, tmp_path):
    coded = command.of_run(world["run"], "trained")
    folder = export_vectors(world["run"], "of_run", overwrite=True)
    vectors = open_dataset(world["first"].root).features("of_run").tokens[:, 0]
    books = np.load(coded_folder(world) / "codebooks.npz", allow_pickle=False)["codebooks"]
    summed = sum(books[level][coded.codes[:, level]] for level in range(LEVELS))
    np.testing.assert_allclose(summed, vectors, rtol=1e-5, atol=1e-6)
    assert len(np.unique(coded.codes, axis=0)) > 1 and folder.is_dir()
    assert with_codes(world["first"], [coded]).fields.item[-1].name == f"trained_{LEVELS}"
    second = settings(world["first"])
    second["data"]["codes"], second["model"]["content"] = ("trained",), "none"
    assert train.train(second, tmp_path / "second")["step"] > 0
    update = user_error(command.update, world["first"].root, "more", coded_folder(world))
    assert "--workdir" in update


def coded_folder(world) -> Path:
    return world["first"].root / "codes" / "trained"


def test_items_keep_their_trained_codes_as_the_catalogue_grows(world):
    first = command.of_run(world["run"], "before")
    later = command.of_run(world["run"], "before", world["later"].root)
    row = {item: k for k, item in enumerate(world["later"].item_table.column("id").to_pylist())}
    place = [row[item] for item in world["first"].item_table.column("id").to_pylist()]
    np.testing.assert_array_equal(later.codes[place], first.codes)
    assert later.manifest["codebooks"] == first.manifest["codebooks"] and later.mask.all()


def test_what_is_served_is_quantised_as_in_eval(world, tmp_path):
    export.export(world["run"], tmp_path, PLAIN)
    model = Model(store.open_current(tmp_path, verify=True))
    dataset = Run.open(world["run"]).experiment.work.dataset
    requests = make_requests(dataset, 15)
    expected = 1 / (1 + np.exp(-expected_logits(world["run"], requests).astype(np.float64)))
    words = dataset.meta["vocabularies"]
    found = np.concatenate([_asked(model, dataset, request, words) for request in requests])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_codebooks_stay_f32_under_bf16_and_a_run_goes_on_bit_for_bit(world, tmp_path):
    settings_ = config(world["first"], precision="bf16")
    train.train(settings_, tmp_path / "whole")
    part = json.loads(json.dumps(settings_))
    part["train"]["epochs"] /= 2
    train.train(part, tmp_path / "parts")
    train.train(settings_, tmp_path / "parts")
    one, two = (Run.open(tmp_path / name).state() for name in ("whole", "parts"))
    for name, leaf in trees.named_leaves(one.params).items():
        assert np.asarray(leaf).tobytes() == np.asarray(trees.named_leaves(two.params)[name]).tobytes(), name
    assert one.params["model"]["quantiser"]["codebooks"].dtype == np.float32


def test_on_several_devices_the_codebooks_are_the_same(world):
    several = config(world["first"])
    several["model"]["cic"]["negatives"] = 0  # drawn ones depend on the order of the items
    several["tables"]["optimizer"] = "rowwise_adagrad"
    check_equal(on_meshes(several, "label", [[1, 1], [4, 1]]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"content": "none"}, "no embedding that the click trains"),
        ({"content": "pre_extracted"}, "no embedding that the click trains"),
        ({"task": "pretraining"}, "no clicks"),
    ],
)
def test_mistakes_in_a_config_are_one_line(world, tmp_path, changes, words):
    wrong = config(world["first"])
    if "task" in changes:
        wrong["task"], wrong["mesh"]["by_rows"], wrong["eval"]["metric"] = "pretraining", (), "contrast_loss"
    else:
        wrong["model"] |= changes
        wrong["model"]["cic"]["weight"] = 0.0
    assert words in user_error(train.train, wrong, tmp_path / "run")


def test_mistakes_of_the_command_are_one_line(world, tmp_path, monkeypatch):
    plain = settings(world["first"])
    train.train(plain, tmp_path / "plain")
    assert "has trained no codes" in user_error(command.of_run, tmp_path / "plain", "new")
    asked = ["em3 codes", "--name", "new", "--workdir", str(world["run"])]
    monkeypatch.setattr(sys, "argv", [*asked, "--levels", "3"])
    assert "--levels" in user_error(command.main)
    monkeypatch.setattr(sys, "argv", asked[:3])
    assert "--data is missing" in user_error(command.main)
    copied = shutil.copytree(world["later"].root, tmp_path / "other")
    assert not (Path(copied) / "codes" / "new").exists()
