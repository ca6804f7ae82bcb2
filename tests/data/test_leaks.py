"""Nothing behind a cut reaches what a model is given before it: for every reader and task, and every planted leak is found."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import base
from configs import retrieval as retrieval_configs
from em3_jax.config import parse
from em3_jax.data import batches, checks
from em3_jax.data.format import Dataset
from em3_jax.tasks.lemur import setup as lemur_wiring
from em3_jax.tasks.pretraining import setup as pretraining_wiring
from em3_jax.tasks.ranking import setup as ranking_wiring
from em3_jax.tasks.retrieval import setup as retrieval_wiring
from em3_jax.tasks.work import Work
from em3_jax.training import experiment
from tests import leaks
from tests.planted_leaks import LEAKS, a_group_that_the_model_reads, in_batch

pytestmark = pytest.mark.quickly_compiled

WORLDS = {
    "table by time": leaks.World(leaks.write_table(random_split=False)),
    "table at random": leaks.World(leaks.write_table(random_split=True)),
    "table of events at random": leaks.World(leaks.write_table(random_split=True, events=True)),
    "table of clicks alone": leaks.World(leaks.write_table(random_split=False, negatives=2)),
    "table without times": leaks.World(leaks.write_untimed("others"), has_times=False),
    "table without times, earlier rows": leaks.World(leaks.write_untimed("earlier"), has_times=False),
    "movielens": leaks.World(leaks.write_movielens),
    "mmrec as clicks": leaks.World(leaks.write_mmrec(as_clicks=True), has_times=False),
    "microlens": leaks.World(leaks.write_given),
    "mind": leaks.World(leaks.write_mind),
    "synthetic": leaks.World(None),  # needs the planted data
}
RETRIEVAL = leaks.World(leaks.write_mmrec(), has_times=False)


def both(world: leaks.World, root: Path, cut: str, planted: Dataset | None = None) -> list[Dataset]:
    """The datasets as they are and with all changed behind the cut."""
    write = world.write or leaks.write_planted(planted)
    datasets = [write(root / name, cut, name == "changed") for name in ("plain", "changed")]
    assert leaks.facts(datasets[0]) == leaks.facts(datasets[1])  # tables of one size
    return datasets


def work_on(dataset: Dataset, task: str = "ranking", **data) -> Work:
    config = leaks.ranking_config(dataset, task, **data)
    wire = lemur_wiring.lemur if task == "lemur" else ranking_wiring.ranking
    return wire(parse.parse(config), leaks.mesh(config))


def seen_of(world: leaks.World, dataset: Dataset, cut: str, task: str = "ranking", **data) -> dict:
    return leaks.given(work_on(dataset, task, **data), leaks.observed_rows(dataset, cut, world.has_times))


@pytest.mark.parametrize("cut", ["valid", "test"])
@pytest.mark.parametrize("name", WORLDS)
def test_no_input_of_a_row_knows_what_is_behind_the_cut(name, cut, planted, tmp_path):
    world = WORLDS[name]
    plain, changed = both(world, tmp_path, cut, planted)
    for most in (0, 20):
        assert not leaks.differing(*(seen_of(world, one, cut, most_rows_per_user=most) for one in (plain, changed)))
    behind = np.flatnonzero(np.asarray(plain.interactions["split"]) == 2)
    later = [leaks.given(work_on(one), behind) for one in (plain, changed)]
    assert any(name.startswith("['rows") for name in leaks.differing(*later))  # and the change is one


@pytest.mark.parametrize("task", ["ranking", "lemur"])
def test_no_logit_of_a_row_knows_what_is_behind_the_cut(task, tmp_path):
    world = WORLDS["table at random"]
    datasets = both(world, tmp_path, "test")
    configs = [leaks.ranking_config(one, task) for one in datasets]
    built = [experiment.build(config) for config in configs]
    state, predict = (
        built[0].program.init(),
        built[0].program.predict,
    )  # one compiled program: both are given the same shapes
    for split in ("train", "valid"):
        rows = np.asarray(datasets[0].split_rows(split))[:32]
        logits = []
        for parts in built:
            batch = parts.work.evaluation("valid").builder(rows, buckets=batches.Buckets(192, 192))
            logits.append(np.asarray(predict(state, parts.program.place(batch | {"label": 0 * batch["label"]}))))
        assert logits[0].std() > 0 and logits[0].tobytes() == logits[1].tobytes()


def retrieval_given(dataset: Dataset) -> dict[str, np.ndarray]:
    """Training batches, graphs and features: all that a retrieval model is made of."""
    config = retrieval_configs.get_config("freedom").to_dict()
    config["data"] |= {"root": str(dataset.root), "batch_size": 32, "edge_dropout": 0.5}
    config["model"]["retrieval_settings"] |= {"width": 8}
    config["model"]["item_graph"] |= {"neighbours": 3}
    config["mesh"] |= {"data": 1}
    work = retrieval_wiring.retrieval(parse.parse(config), leaks.mesh(config))
    leaves = {"constants": jax.device_get(work.constants)}
    leaves |= {f"train {step}": work.source[step] for step in range(leaks.STEPS)}
    found = jax.tree_util.tree_leaves_with_path(leaves)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


@pytest.mark.parametrize("cut", ["valid", "test"])
def test_retrieval_trains_on_nothing_behind_the_cut(cut, tmp_path):
    assert not leaks.differing(*map(retrieval_given, both(RETRIEVAL, tmp_path, cut)))


def test_pretraining_is_given_no_interaction(tmp_path):
    """It reads the content of all items, which is taken as known beforehand, and nothing that anybody did."""
    config = base.ranking().to_dict() | {"task": "pretraining"}
    given = []
    for dataset in both(RETRIEVAL, tmp_path, "valid"):
        config["data"] |= {"root": str(dataset.root), "features": ("image",), "placement": "host", "batch_size": 8}
        source = pretraining_wiring.pretraining(parse.parse(config), leaks.mesh(config)).source
        found = jax.tree_util.tree_leaves_with_path([source[step] for step in range(leaks.STEPS)])
        given.append({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found})
    assert given[0] and not leaks.differing(*given)


def test_a_stream_is_given_nothing_behind_a_window(tmp_path):
    """The labels of a window are behind its scoring: it is the window in whose middle the cut lies."""
    world = WORLDS["table by time"]
    datasets = both(world, tmp_path, "test")
    late, now = leaks.behind(*(np.asarray(datasets[0].interactions[n]) for n in ("split", "time")), "test")
    end = int(np.flatnonzero(late | now)[0])
    given = [leaks.given_in_stream(one, work_on(one), end) for one in datasets]
    assert not leaks.differing(*given)


def given_with_other_groups(tmp_path) -> list[str]:
    """What differs of a batch when all groups are others."""
    dataset = leaks.write_table(random_split=False)(tmp_path / "plain", "test", False)
    group = np.random.default_rng(0).permutation(np.asarray(dataset.group))
    other = dataclasses.replace(dataset, interactions=dataset.interactions | {"group": group})
    rows = np.arange(40)
    made = [work_on(dataset, "lemur").builder(one)(rows, buckets=batches.Buckets(192, 192)) for one in (dataset, other)]
    made = [{name: value for name, value in batch.items() if not isinstance(value, dict)} for batch in made]
    return leaks.differing(*made)


def test_the_model_is_not_given_the_group(tmp_path):
    assert given_with_other_groups(tmp_path) == ["group"]  # the mask of LEMUR's contrast


# Planted leaks: see `planted_leaks`.


def test_a_model_that_reads_the_group_is_found(tmp_path, monkeypatch):
    in_batch(a_group_that_the_model_reads)(monkeypatch)
    assert given_with_other_groups(tmp_path) != ["group"]


@pytest.mark.parametrize("leak", LEAKS)
def test_a_planted_leak_is_found(leak, tmp_path, monkeypatch):
    where, cut, plant = LEAKS[leak]
    monkeypatch.setattr(checks, "_check_histories", lambda *_: None)  # which refuses some of them by itself
    plant(monkeypatch)
    if where == "retrieval":
        found = leaks.differing(*map(retrieval_given, both(RETRIEVAL, tmp_path, cut)))
    elif where == "stream":
        with pytest.raises(AssertionError, match="trained"):
            test_a_stream_is_given_nothing_behind_a_window(tmp_path)
        return
    else:
        found = leaks.differing(*(seen_of(WORLDS[where], one, cut) for one in both(WORLDS[where], tmp_path, cut)))
    assert found, f"nobody would have noticed: {leak}"
