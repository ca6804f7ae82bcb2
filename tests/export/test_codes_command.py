"""`em3 codes`: codes stay as the catalogue grows, and are fields wherever a run's fields are read."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from em3_jax import train
from em3_jax.core.fields import FIRST_KNOWN, UNKNOWN
from em3_jax.data.codes import read_codes, with_codes
from em3_jax.data.features import write_features
from em3_jax.data.format import open_dataset
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.export import codes as command
from em3_jax.export import command as export
from em3_jax.export.vectors import export_vectors
from em3_jax.features.command import listing
from em3_jax.serving import store
from em3_jax.serving.service import Model
from em3_jax.training import growth
from em3_jax.training.run import Run
from tests.conftest import user_error
from tests.export.served_runs import PLAIN, expected_logits, make_requests
from tests.grown_tables import grown
from tests.training.test_growth import MORE, STEPS, settings

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(40)]

LEVELS, SIZE = 3, 8


def config(dataset, content: str = "none", **train_) -> dict:
    result = settings(dataset, **train_)
    result["data"]["codes"] = ("sid",)
    result["model"]["content"] = content
    return result


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict:
    """The first dataset with codes `sid`, the later one with the codes that come of these, and a run on the first."""
    root = tmp_path_factory.mktemp("coded")
    first, later = grown(root / "first", later=False), grown(root / "later", later=True)
    made = command.make(first.root, "sid", ("image",), levels=LEVELS, size=SIZE)
    updated = command.update(later.root, "sid", first.root / "codes" / "sid")
    train.train(config(first), root / "run")
    return {"first": first, "later": later, "made": made, "updated": updated, "run": root / "run"}


def test_items_that_were_there_keep_their_codes_bit_for_bit(world):
    first, later = world["first"], world["later"]
    row = {item: k for k, item in enumerate(later.item_table.column("id").to_pylist())}
    place = np.array([row[item] for item in first.item_table.column("id").to_pylist()])
    assert not np.array_equal(place, np.arange(len(place)))  # they have moved
    np.testing.assert_array_equal(world["updated"].codes[place], world["made"].codes)
    assert world["updated"].manifest["codebooks"] == world["made"].manifest["codebooks"]
    assert world["updated"].mask.all()
    # New items have the codes that the same codebooks give.
    afresh = command.update(later.root, "again", first.root / "codes" / "sid")
    np.testing.assert_array_equal(afresh.codes, world["updated"].codes)
    new = np.setdiff1d(np.arange(later.num_items), place)
    assert len(np.unique(world["updated"].codes[new], axis=0)) > SIZE


def test_an_item_whose_content_has_changed_is_coded_again_and_no_other(world, tmp_path):
    dataset = open_dataset(shutil.copytree(world["first"].root, tmp_path / "data"))
    image = dataset.features("image")
    tokens = np.array(image.tokens)
    tokens[7] = tokens[7, :, ::-1]
    manifest = {key: image.manifest[key] for key in ("encoder", "kind") if key in image.manifest}
    write_features(dataset.root, "image", tokens, image.mask, manifest, dataset.meta["item_hash"], overwrite=True)
    before = np.array(read_codes(dataset, "sid").codes)
    after = command.update(dataset.root, "sid", dataset.root / "codes" / "sid", overwrite=True).codes
    assert np.flatnonzero((after != before).any(axis=1)).tolist() == [7]


def test_the_same_seed_makes_the_same_codes(world):
    root = world["first"].root
    one = command.make(root, "one", ("image",), levels=2, size=4, seed=3)
    two = command.make(root, "two", ("image",), levels=2, size=4, seed=3)
    assert (one.manifest["hash"], one.manifest["codebooks"]) == (two.manifest["hash"], two.manifest["codebooks"])


def test_a_run_goes_on_with_the_grown_catalogue_and_keeps_the_rows_of_its_codes(world, tmp_path):
    run = Path(shutil.copytree(world["run"], tmp_path / "run"))
    coded = [with_codes(world[when], [world[what]]) for when, what in (("first", "made"), ("later", "updated"))]
    place = growth.row_map(*map(growth.vocabulary, coded))
    was, now = (one.fields.offsets()["item"] for one in coded)
    for level in range(LEVELS):
        name = f"sid_{level + 1}"
        np.testing.assert_array_equal(place[was[name] :][: SIZE + 1], now[name] + np.arange(SIZE + 1))
    assert train.train(config(world["later"], grow=True), run)["step"] == MORE > STEPS


def test_codes_of_other_codebooks_are_not_gone_on_with(world, tmp_path):
    run = Path(shutil.copytree(world["run"], tmp_path / "run"))
    root = shutil.copytree(world["first"].root, tmp_path / "data")
    command.make(root, "sid", ("image",), levels=LEVELS, size=SIZE, seed=9, overwrite=True)
    message = user_error(train.train, config(open_dataset(root)), run)
    assert "'codes/sid'" in message and "not those it was trained on" in message
    later = shutil.copytree(world["later"].root, tmp_path / "later")
    command.make(later, "sid", ("image",), levels=LEVELS, size=SIZE, overwrite=True)
    assert "item/sid_1" in user_error(train.train, config(open_dataset(later), grow=True), run)


def test_what_is_served_has_the_codes_that_eval_has(world, tmp_path):
    parts = Run.open(world["run"]).experiment
    dataset = parts.work.dataset
    export.export(world["run"], tmp_path / "store", PLAIN)
    model = Model(store.open_current(tmp_path / "store", verify=True))
    columns = dataset.item_field_ids[:, -LEVELS:]
    np.testing.assert_array_equal(columns, world["made"].codes.astype(int) + FIRST_KNOWN)
    requests = make_requests(dataset, 20)
    expected = 1 / (1 + np.exp(-expected_logits(world["run"], requests).astype(np.float64)))
    words = dataset.meta["vocabularies"]
    found = np.concatenate([_asked(model, dataset, request, words) for request in requests])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def _asked(model: Model, dataset, request: dict, words: dict) -> np.ndarray:
    """What the model answers to a request of `make_requests`, of a dataset that has vocabularies."""
    columns, row = dataset.interactions, request["row"]
    events = slice(columns["history_start"][row], columns["history_end"][row])
    users, items = (t.column("id").to_numpy(zero_copy_only=False) for t in (dataset.user_table, dataset.item_table))
    value = lambda group, ids: [words[group]["device"][k - FIRST_KNOWN] if k > UNKNOWN else None for k in ids]  # noqa: E731
    return model.score(
        users[columns["user"][row]],
        items[dataset.events["item"][events]],
        items[request["candidates"]],
        context={"device": value("context", [columns["context_device"][row]])[0]},
        history_fields={"device": value("event", dataset.events["field_device"][events])},
    ).probability


def test_items_new_to_a_store_are_served_by_their_codes(world, tmp_path):
    export.export(world["run"], tmp_path, PLAIN)
    before = Model(store.open_current(tmp_path))
    export.export(world["run"], tmp_path, PLAIN._replace(data_root=str(world["later"].root), update=True))
    now = Model(store.open_current(tmp_path))
    rows = now.version["item_rows"]
    new = now.items.find(["i100", "i200", "i300"])
    assert (rows[new, 0] == rows[-1, 0]).all()  # an id of which nothing is known
    first = with_codes(world["later"], [world["updated"]]).fields.offsets()["item"]
    place = {item: k for k, item in enumerate(world["later"].item_table.column("id").to_pylist())}
    new_codes = world["updated"].codes[[place[item] for item in ("i100", "i200", "i300")]].astype(int)
    for level in range(LEVELS):
        of_code = first[f"sid_{level + 1}"] + 1 + new_codes[:, level]
        found = rows[new, level - LEVELS]
        # Codes that no item of training has stand for `unknown`, as everywhere.
        assert ((found == of_code) | (found == first[f"sid_{level + 1}"])).all() and (found == of_code).any()
    known = [f"i{k}" for k in range(9)]
    one, two = (model.score("u1", history=known[:3], candidates=known).probability for model in (before, now))
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-6)
    unlike = now.score("u1", history=known[:3], candidates=[f"i{k}" for k in range(100, 140)]).probability
    assert len(np.unique(unlike.round(7))) > 5  # cold items differ


def test_codes_of_other_codebooks_do_not_go_into_a_store(world, tmp_path):
    export.export(world["run"], tmp_path / "store", PLAIN)
    root = shutil.copytree(world["first"].root, tmp_path / "data")
    command.make(root, "sid", ("image",), levels=LEVELS, size=SIZE, seed=9, overwrite=True)
    other = PLAIN._replace(data_root=str(root))
    assert "'codes/sid'" in user_error(export.export, world["run"], tmp_path / "store", other)
    again = user_error(export.export, world["run"], tmp_path / "store", other._replace(update=True))
    assert "'codes/sid'" in again


def test_vectors_of_a_run_that_reads_codes_too(world, tmp_path):
    train.train(config(world["first"], "end_to_end"), tmp_path / "run")
    folder = export_vectors(tmp_path / "run", "both", overwrite=True)
    vectors = open_dataset(world["first"].root).features("both")
    assert folder.is_dir() and vectors.mask.all()
    coded = command.make(world["first"].root, "of_run", ("both", "image"), levels=2, size=8)
    assert list(coded.manifest["features"]) == ["both", "image"]


def test_a_dataset_that_is_prepared_again_keeps_its_codes_and_asks_for_an_update(world, tmp_path):
    arguments = {"interactions": 400, "users": 20, "items": 30}
    dataset = synthetic(tmp_path / "d", **arguments)
    command.make(dataset.root, "sid", ("text",), levels=1, size=4)
    again = synthetic(tmp_path / "d", **arguments, overwrite=True)
    before = np.array(read_codes(again, "sid").codes)
    changed = synthetic(tmp_path / "d", **(arguments | {"items": 32}), overwrite=True)
    message = user_error(read_codes, changed, "sid")
    assert "--from" in message
    from_ = dataset.root / "codes" / "sid"
    assert len(command.update(changed.root, "sid", from_, overwrite=True).codes) == 32 != len(before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--features image --size 4 --levels 0", "--levels 0"),
        ("--features image --size 1", "--size 1"),
        ("--features image --kind vq", "rq_kmeans, rq_vae"),
        ("--features image --size 4000", "of 50 items 50 have content"),
        ("--features images", "no such feature set"),
        ("--features image[4]", "takes no slot"),
        ("", "--features is missing"),
        ("--from nowhere", "no code set"),
        ("--from sid --seed 1", "--seed"),
        ("--features image --name sid", "name in use"),
    ],
)
def test_mistakes_of_the_command_are_one_line(world, monkeypatch, options, words):
    root = world["first"].root
    given = options.replace("--from sid", f"--from {root / 'codes' / 'sid'}").split()
    name = [] if "--name" in given else ["--name", "new"]
    monkeypatch.setattr(sys, "argv", ["em3 codes", "--data", str(root), *name, *given])
    assert words in user_error(command.main)
    assert not (root / "codes" / "new").exists()


@pytest.mark.parametrize(
    ("codes", "task", "words"),
    [
        (("sids",), "ranking", "no such code set"),
        (("sid", "sid"), "ranking", "named twice"),
        (("sid",), "pretraining", "reads no item fields"),
    ],
)
def test_mistakes_in_a_config_are_one_line(world, tmp_path, codes, task, words):
    wrong = config(world["first"], "end_to_end")
    wrong["data"]["codes"], wrong["task"] = codes, task
    if task == "pretraining":
        wrong["mesh"]["by_rows"], wrong["eval"]["metric"] = (), "contrast_loss"
    assert words in user_error(train.train, wrong, tmp_path / "run")


def test_what_the_command_says(world, monkeypatch, capsys):
    root = world["first"].root
    monkeypatch.setattr(
        sys, "argv", ["em3 codes", "--data", str(root), "--name", "said", "--features", "image", "--size", "4"]
    )
    command.main()
    said = capsys.readouterr().out
    manifest = json.loads((root / "codes" / "said" / "manifest.json").read_text("utf-8"))
    for word in (
        "usage by level",
        "perplexity by level",
        "share all codes",
        "variance explained",
        "config.data.codes=said",
    ):
        assert word in said
    assert f"{manifest['statistics']['r2']:.1%}" in said
    assert "codes said: rq_kmeans of image, 24 x 4 codes in 6 bytes, 50 of 50 items" in listing(open_dataset(root))
