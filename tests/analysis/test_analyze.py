"""Tables 8 and 9 against plain loops over what lies on the disk, their sign where the construction fixes it, and bad input."""

import dataclasses
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from configs import lemur as lemur_config
from em3_jax.analysis import command as analyze
from em3_jax.analysis import maps, similarity, spaces
from em3_jax.analysis.page import Look
from em3_jax.analysis.similarity import Choice
from em3_jax.config import parse
from em3_jax.core import strict_json
from em3_jax.core.fields import FIRST_KNOWN
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.training import experiment, rundir
from em3_jax.training.checkpoint import Checkpoints
from em3_jax.training.run import Run
from tests.conftest import ROOT, user_error
from tests.small_runs import small_config

pytestmark = pytest.mark.quickly_compiled

CHOICE = Choice(cold_most=45, popular_share=0.3, neighbours=3, sample=1000)
SMALL = Look(most_items=12)


def save(directory: Path, config: dict, ids: np.ndarray | None = None, bank: dict | None = None) -> Path:
    """A run whose best checkpoint is its fresh state, but for the items' ID rows [I, W] and the memory bank."""
    parts = experiment.build(config)
    state, data_hash = parts.program.init(), parts.work.dataset.meta["data_hash"]
    if ids is not None:
        first = parts.work.dataset.fields.offsets()["item"]["item"] + FIRST_KNOWN - 1
        table = state.tables["embedding"].at[first : first + len(ids)].set(ids)
        state = state.replace(tables=state.tables | {"embedding": table})
    if bank is not None:
        state = state.replace(memory=state.memory | {k: jnp.asarray(v, state.memory[k].dtype) for k, v in bank.items()})
    rundir.claim(directory, parse.parse(config), data_hash, parts.feature_hashes)
    checkpoints = Checkpoints(directory, data_hash)
    checkpoints.save("best", state, {})
    checkpoints.close()
    return directory


def tokens_of(dataset, name) -> tuple[np.ndarray, np.ndarray]:
    folder = dataset.root / "features" / name
    return np.load(folder / "tokens.npy").astype(np.float64), np.load(folder / "mask.npy")


def frozen_by_loops(dataset) -> np.ndarray:
    rows = []
    for item in range(dataset.num_items):
        parts = []
        for name in ("image", "text"):
            tokens, mask = tokens_of(dataset, name)
            valid = [
                (t - t.mean()) / np.sqrt(t.var() + 1e-6) for t, m in zip(tokens[item], mask[item], strict=True) if m
            ]
            mean = np.mean(valid, axis=0) if valid else np.zeros(tokens.shape[-1])
            parts.append(mean / (np.linalg.norm(mean) or 1.0))
        rows.append(np.concatenate(parts))
    return np.array(rows)


@pytest.fixture(scope="module")
def frozen(planted) -> np.ndarray:
    return frozen_by_loops(planted)


@pytest.fixture(scope="module")
def id_rows(frozen, planted) -> tuple[np.ndarray, np.ndarray]:
    """(of the baseline: noise, of EM3: content seen through 16 numbers)."""
    random = np.random.default_rng(5)
    width = small_config(planted).tables.width
    seen = frozen @ random.standard_normal((frozen.shape[1], width))
    return random.standard_normal((len(frozen), width)), seen + 0.1 * random.standard_normal(seen.shape)


@pytest.fixture(scope="module")
def runs(planted, id_rows, tmp_path_factory) -> tuple[Path, Path]:
    """(EM3, baseline)."""
    folder = tmp_path_factory.mktemp("analysed")
    noise, seen = id_rows
    em3 = save(folder / "em3", small_config(planted).to_dict(), seen)
    return em3, save(folder / "id_only", small_config(planted, model__content="none").to_dict(), noise)


@pytest.fixture(scope="module")
def analysed(runs) -> spaces.Analysed:
    return spaces.read(*runs)


def by_loops(searched, measured, items, pool, count) -> list[float]:
    """Of each item, the mean cosine in `measured` with its nearest in `searched`."""

    def cosine(a, b):
        return a @ b / np.sqrt((a @ a) * (b @ b))

    searched, measured = np.asarray(searched, np.float64), np.asarray(measured, np.float64)
    result = []
    for item in items:
        others = [other for other in np.flatnonzero(pool) if other != item]
        others.sort(key=lambda other: (-cosine(searched[item], searched[other]), other))
        result.append(np.mean([cosine(measured[item], measured[other]) for other in others[:count]]))
    return result


def test_the_spaces_are_what_the_files_say(planted, analysed, frozen, id_rows):
    np.testing.assert_allclose(analysed.spaces["frozen"].vectors, frozen, atol=2e-3)  # tokens are f16
    for key, rows in zip(("baseline_ids", "ids"), id_rows, strict=True):
        np.testing.assert_array_equal(analysed.spaces[key].vectors, rows.astype(np.float32))
    rows = planted.split_rows("train")
    shown, clicks = np.zeros(planted.num_items, int), np.zeros(planted.num_items, int)
    columns, seen = planted.interactions, set()  # the events that training reads: the last T of each history
    for row in rows:
        start, end = columns["history_start"][row], columns["history_end"][row]
        seen |= set(range(max(start, end - small_config(planted).data.history_length), end))
        shown[planted.interactions["item"][row]] += 1
        clicks[planted.interactions["item"][row]] += planted.interactions["label"][row]
    np.add.at(shown, planted.events["item"][sorted(seen)], 1)
    np.testing.assert_array_equal(analysed.shown, shown)
    np.testing.assert_array_equal(analysed.clicks, clicks)
    has_content = tokens_of(planted, "image")[1].any(axis=1) | tokens_of(planted, "text")[1].any(axis=1)
    np.testing.assert_array_equal(analysed.pool, has_content & (shown > 0))
    assert 0 < analysed.pool.sum() < planted.num_items and analysed.model == "EM3"
    assert analysed.spaces["content"].vectors.shape[0] == planted.num_items


def test_cold_and_popular_items(analysed):
    pool, shown, clicks = analysed.pool, analysed.shown, analysed.clicks
    cold = [item for item in range(len(pool)) if pool[item] and shown[item] <= CHOICE.cold_most]
    assert similarity.cold_items(analysed, CHOICE).tolist() == cold
    order = sorted(np.flatnonzero(pool), key=lambda item: (-clicks[item], item))
    popular = sorted(order[: int(0.3 * pool.sum())])
    assert similarity.popular_items(analysed, CHOICE).tolist() == popular
    few = CHOICE._replace(sample=7)
    drawn = similarity.sampled(np.array(popular), few)
    assert len(set(drawn)) == 7 and set(drawn) <= set(popular) and (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(drawn, similarity.sampled(np.array(popular), few))
    assert drawn.tolist() != similarity.sampled(np.array(popular), few._replace(seed=1)).tolist()


@pytest.mark.parametrize(
    "number,keys,measured", [(8, ("baseline_ids", "ids"), "frozen"), (9, ("frozen", "content"), "baseline_ids")]
)
def test_tables_are_those_of_plain_loops(analysed, number, keys, measured):
    choose = similarity.cold_items if number == 8 else similarity.popular_items
    items, pool = choose(analysed, CHOICE), analysed.pool
    table = similarity.compared(analysed, number, items, CHOICE)
    measured = analysed.spaces[measured].vectors
    values = [np.array(by_loops(analysed.spaces[key].vectors, measured, items, pool, 3)) for key in keys]
    for row, expected in zip(table["rows"], values, strict=True):
        low, high = stats.t.interval(0.95, len(items) - 1, expected.mean(), stats.sem(expected))
        np.testing.assert_allclose([row["mean"], row["low"], row["high"]], [expected.mean(), low, high], atol=1e-6)
    difference = values[1] - values[0]
    assert table["difference"]["mean"] == pytest.approx(difference.mean(), abs=1e-6)
    assert table["difference"]["p"] == pytest.approx(stats.ttest_rel(values[1], values[0]).pvalue, rel=1e-3)
    chance = by_loops(measured, measured, items, pool, int(pool.sum()))  # all others are neighbours
    assert table["chance"] == pytest.approx(np.mean(chance), abs=1e-6)
    assert (table["items"], table["sample"], table["pool"]) == (len(items), len(items), pool.sum())
    if number == 8:  # EM3's ids were made of content, the baseline's of noise
        assert table["difference"]["low"] > 0 and table["rows"][0]["low"] < table["chance"] < table["rows"][0]["high"]
        assert table["rows"][1]["low"] > table["chance"]


@pytest.mark.parametrize("sign", [1, -1])
def test_table_9_has_the_sign_of_its_construction(analysed, sign):
    """Taste makes the baseline's ids, and either what EM3 sees of content (+), or what the frozen encoder sees (-)."""
    random = np.random.default_rng(0)
    number = len(analysed.pool)
    taste, noise = random.standard_normal((2, number, 8))
    vectors = {"baseline_ids": taste, "content": taste + 0.3 * random.standard_normal(taste.shape), "frozen": noise}
    if sign < 0:
        vectors["content"], vectors["frozen"] = vectors["frozen"], vectors["content"]
    made = {key: space._replace(vectors=vectors.get(key, space.vectors)) for key, space in analysed.spaces.items()}
    changed = analysed._replace(spaces=made)
    table = similarity.compared(changed, 9, similarity.popular_items(changed, CHOICE), CHOICE)
    assert sign * table["difference"]["mean"] > 0 and table["difference"]["p"] < 1e-6
    low, high = sorted([table["difference"]["low"], table["difference"]["high"]])
    assert low * high > 0
    assert (table["gain"] > 1 or np.isnan(table["gain"])) if sign > 0 else table["gain"] < 0


def test_a_sample_and_the_approximate_index(analysed):
    items = similarity.popular_items(analysed, CHOICE)
    few = CHOICE._replace(sample=9)
    table = similarity.compared(analysed, 9, items, few)
    own = similarity.compared(analysed, 9, similarity.sampled(items, few), CHOICE)
    assert strict_json.finite(table) == strict_json.finite(own | {"items": len(items)}) and table["sample"] == 9
    near = similarity.compared(analysed, 9, items, CHOICE._replace(approximate=True))
    exact = similarity.compared(analysed, 9, items, CHOICE)
    assert near["rows"][1]["mean"] == pytest.approx(exact["rows"][1]["mean"], abs=0.02)


def test_of_a_share_of_nothing_there_is_no_gain(analysed):
    table = similarity.compared(analysed, 9, similarity.popular_items(analysed, CHOICE), CHOICE)
    assert table["rows"][0]["low"] < 0 and np.isnan(table["gain"])  # noise made the space that measures
    assert "nan" not in similarity.markdown([table], analysed, CHOICE).lower()
    assert strict_json.finite({"a": [float("nan"), 1.0]}) == {"a": [None, 1.0]}


def test_the_files_are_the_same_from_run_to_run(analysed, tmp_path):
    folders = [tmp_path / name for name in ("a", "b")]
    tables = [analyze.analyze(analysed, folder, CHOICE, SMALL) for folder in folders]
    assert strict_json.finite(tables[0]) == strict_json.finite(tables[1]) and [
        table["table"] for table in tables[0]
    ] == [8, 9]
    for name in ("tables.md", "analysis.json", "index.html"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    numbers = json.loads((folders[0] / "analysis.json").read_text())
    assert numbers["tables"] == strict_json.finite(tables[0]) and numbers["settings"] == CHOICE._asdict()
    text = (folders[0] / "tables.md").read_text()
    assert f"{tables[0][0]['rows'][1]['mean']:.4f}" in text and "EM3 IDs" in text


def test_table_8_is_measured_in_content_that_the_model_does_not_read_too(planted, runs, id_rows, tmp_path):
    reads_images = small_config(planted, data__features=("image",)).to_dict()
    run = save(tmp_path / "images", reads_images, id_rows[1])
    seen = spaces.read(run, runs[1])
    assert seen.frozen_sets == ["image"] and seen.independent.name == "Independent content (text)"
    vectors, present = spaces.frozen_content([planted.features("text")])
    np.testing.assert_array_equal(seen.independent.vectors, vectors)
    tables = analyze.analyze(seen, tmp_path / "out", CHOICE, SMALL)
    assert [(t["table"], t["read_by_model"]) for t in tables] == [(8, True), (8, False), (9, False)]
    cold = similarity.cold_items(seen, CHOICE)
    taken = cold[(seen.pool & present)[cold]]
    expected = by_loops(seen.spaces["ids"].vectors, vectors, taken, seen.pool & present, 3)
    assert tables[1]["rows"][1]["mean"] == pytest.approx(np.mean(expected))
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "which EM3 reads itself" in text and "is not among what EM3 reads" in text
    assert spaces.read(*runs).independent is None, "it reads all there is, and the items have no texts"
    assert "--independent image[0]: the run reads it" in user_error(
        lambda: spaces.read(run, runs[1], independent=("image[0]",))
    )
    assert "have no texts" in user_error(lambda: spaces.read(run, runs[1], independent=("words",)))


def test_items_that_share_words_are_near_by_words(planted):
    count = planted.num_items
    texts = [f"the {('red fox', 'blue whale')[k % 2]} number{k // 2}" if k else "" for k in range(count)]
    table = planted.item_table.append_column("story", pa.array(texts))
    films = dataclasses.replace(planted, item_table=table)
    vectors, present = spaces.bag_of_words(films, ["story"])
    assert not present[0] and present[1:].all()
    near = vectors @ vectors.T
    alike = np.equal.outer(np.arange(count) % 2, np.arange(count) % 2)[1:, 1:]
    others = near[1:, 1:][~np.eye(count - 1, dtype=bool) & ~alike]
    own = near[1:, 1:][~np.eye(count - 1, dtype=bool) & alike]
    assert np.median(own) > 3 * np.median(others)
    again, _ = spaces.bag_of_words(films, ["story"])
    np.testing.assert_array_equal(vectors, again)


def test_a_run_with_a_memory_bank(planted, runs, tmp_path):
    config = lemur_config.get_config()
    config.data.root, config.data.features, config.data.history_length = str(planted.root), ("image", "text"), 8
    config.model.encoder.update({"width": 8, "layers": 1, "heads": 2, "mlp_width": 8, "output": 6})
    config.data.batch_size, config.model.backbone_settings.hidden = 64, (8,)
    shapes = experiment.build(config.to_dict()).program.shapes.memory
    vectors = np.random.default_rng(0).standard_normal(shapes["vector"].shape)
    written = np.where(np.arange(len(vectors)) % 5, 3, -1)
    run = save(tmp_path / "lemur", config.to_dict(), bank={"vector": vectors, "written": written})
    analysed = spaces.read(run, runs[1])
    content = analysed.spaces["content"]
    assert analysed.model == "LEMUR" and content.name == "LEMUR content"
    np.testing.assert_array_equal(content.vectors, vectors[: planted.num_items].astype(np.float32))
    np.testing.assert_array_equal(content.present, np.arange(planted.num_items) % 5 > 0)
    table = similarity.compared(analysed, 9, similarity.popular_items(analysed, CHOICE), CHOICE)
    assert table["rows"][1]["name"] == "LEMUR content"


def test_items_that_are_all_alike_lie_in_one_place_of_the_map(recwarn):
    present = np.arange(9) > 1
    positions = maps.make(np.ones((9, 4), np.float32), present, seed=0)
    assert np.isnan(positions[:2]).all() and (positions[2:] == 0).all() and not len(recwarn)


def error_of(monkeypatch, tmp_path, directory, baseline, *options) -> str:
    """The one line of the command."""
    words = ["analyze", f"--workdir={directory}", f"--baseline={baseline}", f"--out={tmp_path / 'out'}", *options]
    monkeypatch.setattr(sys, "argv", words)
    return user_error(analyze.main)


@pytest.mark.parametrize(
    "options,expected",
    [
        (["--cold-most=0"], "--cold-most 0: give 1 or more"),
        (["--cold-most=1"], "give --cold-most "),
        (["--popular-share=0"], "--popular-share 0.0: give a share above 0"),
        (["--cold-most=25", "--popular-share=0.001"], "too few to compare; give --popular-share"),
        (["--neighbours=0"], "--neighbours 0: give 1 or more"),
        (["--sample=1"], "--sample 1: give 2 or more"),
        (["--seed=-1"], "--seed -1: give 0 or more"),
        (
            ["--cold-most=25", "--field=categori"],
            "--field categori: items have no such field to colour by; did you mean 'category'?",
        ),
        (["--cold-most=25", "--title=name"], "--title name: the items of"),
        (["--cold-most=25", "--items=1,nobody"], "--items: the dataset has no item 'nobody'"),
        (["--cold-most=25", "--page-items=1"], "--page-items 1: give 2 or more"),
        (["--cold-most=25", "--thumbnails=-1"], "--thumbnails -1: give 0 or more"),
        (["--cold-most=25", "--images=nowhere"], "nowhere: no such folder"),
        (["--frozen=audio"], "no such feature set"),
    ],
)
def test_bad_options(runs, tmp_path, monkeypatch, options, expected):
    assert expected in error_of(monkeypatch, tmp_path, *runs, *options)


def test_runs_that_cannot_be_analysed(planted, runs, tmp_path, monkeypatch):
    em3, baseline = runs
    assert "run.json: file missing" in error_of(monkeypatch, tmp_path, tmp_path / "nowhere", baseline)
    assert "no content embeddings" in error_of(monkeypatch, tmp_path, baseline, baseline)
    (tmp_path / "untrained").mkdir()
    shutil.copy(em3 / "run.json", tmp_path / "untrained")
    assert "no checkpoint" in error_of(monkeypatch, tmp_path, tmp_path / "untrained", baseline)
    assert "no checkpoint" in error_of(monkeypatch, tmp_path, em3, tmp_path / "untrained")
    pretrained = small_config(planted)
    pretrained.task, pretrained.mesh.by_rows, pretrained.eval.metric = "pretraining", (), "contrast_loss"
    pretrained = save(tmp_path / "pretrained", pretrained.to_dict())
    assert "no table of ID embeddings" in error_of(monkeypatch, tmp_path, pretrained, baseline)
    (tmp_path / "file").write_text("mine")
    taken = error_of(monkeypatch, tmp_path, em3, baseline, f"--out={tmp_path / 'file'}")
    assert "cannot be written (File exists); choose another folder" in taken
    other = synthetic(tmp_path / "other", interactions=300, users=20, items=20, seed=9)
    elsewhere = tmp_path / "elsewhere"
    rundir.claim(elsewhere, parse.parse(small_config(other)), other.meta["data_hash"], {})
    assert "belongs to another dataset" in error_of(monkeypatch, tmp_path, em3, elsewhere)
    assert not (tmp_path / "out").exists()


def test_without_clicks_nothing_is_popular(analysed):
    nobody = analysed._replace(clicks=np.zeros_like(analysed.clicks))
    assert "hold no clicks" in user_error(similarity.popular_items, nobody, CHOICE)
    nothing = {key: space._replace(present=np.zeros_like(space.present)) for key, space in analysed.spaces.items()}
    assert "nothing can be compared" in user_error(similarity.cold_items, analysed._replace(spaces=nothing), CHOICE)


def test_the_command(runs, tmp_path):
    command = [
        sys.executable,
        "-m",
        "em3_jax.analyze",
        f"--workdir={runs[0]}",
        f"--baseline={runs[1]}",
        f"--out={tmp_path / 'out'}",
    ]
    options = (["--cold-most=25", "--page-items=12", "--field=tags"], ["--cold-most=25", "--field=nothing"])
    results = [
        subprocess.run(command + more, cwd=ROOT, capture_output=True, text=True, check=False) for more in options
    ]
    assert results[0].returncode == 0, results[0].stderr
    assert "**Table 9." in results[0].stdout and (tmp_path / "out" / "index.html").is_file()
    assert results[1].returncode == 2 and len(results[1].stderr.strip().splitlines()) == 1


def test_raw_content_needs_features_to_measure_in(planted, analysed, runs, monkeypatch):
    parts = Run.open(runs[0]).experiment
    raw = [
        features.__class__(features.name, features.tokens, features.mask, {"raw": {}})
        for features in parts.work.feature_sets
    ]
    found = spaces._frozen_sets(replace(parts, work=replace(parts.work, feature_sets=raw)), ())
    assert [features.name for features in found] == ["image", "text"]  # what an encoder has made of the same items
    assert [features.name for features in spaces._frozen_sets(parts, ("text[0]",))] == ["text"]
