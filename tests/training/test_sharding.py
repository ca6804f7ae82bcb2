"""sharding: steps on any mesh are the steps on one device, and what is cut by rows stays where it is."""

import json
import subprocess
import sys

import numpy as np
import pytest
from jax.sharding import PartitionSpec

from configs import base, lemur, retrieval
from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.core import sharding
from em3_jax.core.batch import BY_EXAMPLE
from em3_jax.data.batches import BatchBuilder, Buckets
from em3_jax.training import experiment
from tests.compilation import on_devices
from tests.conftest import ROOT, user_error
from tests.planted_pairs import planted_pairs
from tests.tiny import with_label, with_numbers

pytestmark = pytest.mark.seconds(400)

MESHES = ((1, 1), (8, 1), (1, 8), (2, 4), (4, 2))


def on_eight_devices(*command: str) -> dict | list:
    """The JSON in the last line that Python prints when it is run so."""
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=on_devices(8), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def on_meshes(config: dict, key: str, meshes=MESHES) -> list[dict]:
    return on_eight_devices("-m", "tests.on_meshes", json.dumps(config), json.dumps(meshes), key)


def check_equal(results: list[dict]) -> None:
    one = results[0]
    for other in results[1:]:
        # Of the second step, which starts from a checkpoint of the mesh before, rounding has grown.
        for step, tolerance in (("first", 1e-5), ("second", 1e-4)):
            assert other[step].keys() == one[step].keys() and one[step]["loss"] > 0
            for name, value in one[
                step
            ].items():  # scalars as they are, leaves of the state as the distance from those of `one`
                assert other[step][name] == pytest.approx(value, rel=tolerance, abs=tolerance), (step, name)


def ranking_config(root) -> dict:
    settings = base.ranking()
    settings.data.root, settings.data.features = str(root), ("image", "text")
    settings.data.history_length, settings.data.batch_size = 6, 32
    return settings.to_dict()


def test_steps_on_any_mesh_and_from_the_checkpoint_of_another_equal_those_on_one_device(planted):
    """Wherever the content lies, and CIC's negatives are those of all devices."""
    config = ranking_config(planted.root)
    config["model"]["cic"]["negatives"] = 0  # drawn ones depend on the order of the items
    results = on_meshes(config, "label", [*MESHES, (2, 1), (4, 1, {"placement": "host"})])
    check_equal(results)
    tables = ["tables/embedding", "tables/slots/accumulator"]
    assert [result["by_rows"] for result in results] == [[], *[tables] * 6]
    assert [result["constants_by_rows"] for result in results] == [
        0,
        *[4] * 5,
        0,
    ]  # tokens and mask of two feature sets
    now, longer = results[-1]["largest_collective"]
    assert 0 < now == longer, "what the devices exchange grows with the tables"


def test_contrasts_within_groups_on_devices_equal_those_on_one(planted):
    """Wherever the examples of a group lie, and its items."""
    config = ranking_config(planted.root)
    config["data"] |= {"order": "by_group"}
    config["model"]["cic"] |= {"negatives": 0, "negatives_from": "group_or_batch"}
    check_equal(on_meshes(config, "label", [(1, 1), (4, 1)]))


@pytest.mark.parametrize("aggregator", ["multi_query", "max", "concat"])
def test_aggregators_of_past_content_on_devices_equal_those_on_one(planted, aggregator):
    config = ranking_config(planted.root)
    config["model"]["cic"]["negatives"] = 0
    config["model"]["content_aggregator"] = aggregator
    check_equal(on_meshes(config, "label", [(1, 1), (4, 1)]))


def lemur_config(root) -> dict:
    settings = lemur.get_config()
    settings.data.root, settings.data.features = str(root), ("image", "text")
    settings.data.history_length, settings.data.batch_size = 6, 32
    settings.model.encoder.update({"width": 16, "layers": 1, "mlp_width": 16, "output": 16})
    return settings.to_dict()


def test_steps_of_lemur_on_any_mesh_equal_those_on_one_device(planted):
    """The bank is dealt out like the tables; SQDC and CIC contrast the examples of all devices."""
    config = lemur_config(planted.root)
    config["model"]["cic"] |= {"weight": 0.1, "negatives": 0}
    results = on_meshes(config, "label", [*MESHES[:4], (2, 1), (4, 1, {"placement": "host"})])
    check_equal(results)
    logged = {"sqdc_loss", "cic_loss", "staleness_steps", "encoded_items"}
    assert logged <= results[0]["first"].keys()
    bank = ["memory/uses", "memory/vector", "memory/written"]
    for result in results[1:]:
        assert result["by_rows"] == ["tables/embedding", "tables/slots/accumulator", *bank]
    assert [result["constants_by_rows"] for result in results] == [0, *[4] * 4, 0]
    now, longer = results[-1]["largest_collective"]
    assert 0 < now == longer, "what the devices exchange grows with the bank"


def test_steps_of_lemur_that_encode_whole_histories_equal_those_on_one_device(planted):
    """The encoder sees every item once, wherever the ranking loss's gradient ends."""
    config = lemur_config(planted.root)
    config["model"] |= {"encode": "all", "ranking_gradient": False}
    config["model"]["sqdc"]["mask_group"] = False
    check_equal(on_meshes(config, "label", [(1, 1), (4, 1, {"placement": "host"})]))


def test_steps_of_retrieval_on_any_mesh_equal_those_on_one_device(tmp_path):
    settings = retrieval.get_config("freedom")
    settings.data.root, settings.data.batch_size = str(planted_pairs(tmp_path).root), 32
    settings.model.retrieval_settings.width = 8
    check_equal(on_meshes(settings.to_dict(), "positive", MESHES[:3]))


TRAIN = """
import json, sys
from em3_jax import evaluate as evaluation, train
train.train(json.loads(sys.argv[1]), sys.argv[2])
print(json.dumps(evaluation.evaluate(sys.argv[2], "valid")["slices"]["all"]))
"""


def test_a_run_on_eight_devices_is_scored_and_resumed_on_one(planted, tmp_path):
    config = ranking_config(planted.root)
    config["mesh"] |= {"data": 4, "model": 2}
    config["train"] |= {"epochs": 0.2, "eval_every": 10}
    report = on_eight_devices("-c", TRAIN, json.dumps(config), str(tmp_path / "run"))
    here = evaluation.evaluate(tmp_path / "run", "valid")["slices"]["all"]
    assert here["auc"] == pytest.approx(report["auc"], abs=1e-5) and here["n"] == report["n"]
    config["mesh"] |= {"data": 1, "model": 1}
    config["train"]["epochs"] = 0.4
    result = train.train(config, tmp_path / "run")
    assert result["step"] == 40 and result["stopped_by"] == "end"


CUT = """
import json, sys
import jax
from em3_jax.tables import packing
from em3_jax.training import experiment
config, found = json.loads(sys.argv[1]), []
for by_rows in ([], ["tables/embedding"], ["tables/.*"]):
    config["mesh"] |= {"data": 8, "model": 1, "by_rows": by_rows}
    tables = experiment.build(config).program.shapes.tables
    found.append([leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(tables)])
print(json.dumps(found))
"""


def test_tables_are_cut_over_the_devices_whatever_by_rows_names(planted):
    """Each device owns its rows alone; patterns are of names that checkpoints have."""
    found = on_eight_devices("-c", CUT, json.dumps(ranking_config(planted.root)))
    assert found == [[False, False]] * 3


LOGITS = """
import json, pathlib, sys, tempfile
import jax, numpy as np
from em3_jax.export.items import encode_items
from em3_jax.training import experiment
from em3_jax.data import batches, blocks
from em3_jax.tables import packing
batches.round_up = blocks.round_up = lambda size, unit: -(-size // 8) * 8  # to 64, small data would always have room
config, found = json.loads(sys.argv[1]), []
for data, model in json.loads(sys.argv[2]):
    config["mesh"] |= {"data": data, "model": model}
    parts, random = experiment.build(config), np.random.default_rng(0)
    draw = lambda leaf: random.normal(0.0, 0.07, leaf.shape).astype(leaf.dtype)
    fresh = parts.program.init()
    drawn = jax.tree.map(lambda leaf: jax.device_put(draw(leaf), leaf.sharding), packing.unpacked(fresh))
    state = packing.packed_as(fresh, drawn)
    logits = parts.evaluate(state, sys.argv[3])[1]["logits"]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        encode_items(folder, parts, state, dtype="float32", batch_size=64, reusable=None)
        looked_up = [np.load(path) for path in sorted(folder.glob("looked_up.*.npy"))]
    found.append((logits, np.concatenate(looked_up, axis=1)))
apart = lambda one, other: float(np.abs(one - other).max())
print(json.dumps([[*map(apart, one, found[0]), *(float(np.ptp(array)) for array in one)] for one in found]))
"""


@pytest.mark.parametrize("config_of", [ranking_config, lemur_config])
def test_scores_do_not_depend_on_the_number_of_devices(planted, config_of):
    """Nor does what services look up of items.

    Some shard names more items or rows than a sample of batches would make room for.
    """
    config = config_of(planted.root)
    config["data"]["history_length"], config["eval"]["batch_size"] = 20, 32
    meshes = [(1, 1), (2, 1), (4, 1), (8, 1)]
    found = on_eight_devices("-c", LOGITS, json.dumps(config), json.dumps(meshes), "train")
    for apart, apart_of_items, spread, spread_of_items in found:
        assert apart <= 1e-6 and spread > 0.005
        # Of other numbers of items at once, rounding differs before layer norms.
        assert apart_of_items <= 1e-5 * spread_of_items


SHARES = """
import json, sys
import jax, numpy as np
from em3_jax.tables import memory_bank, packing
from em3_jax.training import experiment
config, found = json.loads(sys.argv[1]), []
parts = experiment.build(config)
state, devices = parts.program.init(), parts.program.mesh.size
for k in range(4):
    batch, before = parts.work.source[k], np.asarray(state.memory["written"])
    state, aux = parts.program.train_step(state, parts.work.constants, parts.program.place(batch))
    after = np.asarray(state.memory["written"])
    first_place = np.repeat(np.arange(devices), 32 // devices) * (len(batch["item_id"]) // devices)
    ids = batch["item_id"][first_place + batch["item_position"]]
    for owner in range(devices):
        mine = np.unique(ids[ids % devices == owner])
        written = mine[after[mine] == k]
        waits = set(mine[before[mine] == memory_bank.NEVER])
        first = waits <= set(written) if len(waits) < len(written) else set(written) <= waits
        found.append([len(mine), len(written), bool(first)])
    assert aux["encoded_items"] == sum(one[1] for one in found[-devices:])
print(json.dumps(found))
"""


def test_each_device_encodes_its_share_of_what_it_owns_and_what_was_never_encoded_first(planted):
    config = lemur_config(planted.root)
    config["mesh"] |= {"data": 4, "model": 1}
    config["model"] |= {"forward_percent": 50.0, "backward_percent": 20.0}
    found = on_eight_devices("-c", SHARES, json.dumps(config))
    assert len(found) == 16 and sum(many for many, _, _ in found) > 64
    for many, encoded, first in found:
        assert encoded == -(-many // 2) and first


@pytest.mark.parametrize(
    "by_rows,words",
    [
        (("tables/.*", "tabels/.*"), "'tabels/.*' matches nothing"),
        (("step",), "step of shape [] does not divide"),
        (("(",), "each a regular expression"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(planted, by_rows, words):
    config = ranking_config(planted.root)
    config["mesh"]["by_rows"] = by_rows
    message = user_error(lambda: experiment.build(config))
    assert "config.mesh.by_rows" in message and words in message


def test_all_batch_keys_by_example_are_split_and_no_others(tiny):
    """Else an array of the examples would be copied to all devices, or a distinct block be cut."""
    settings = {"history_length": 5, "unknown_alpha": 0.0, "unknown_floor": {}}
    queries = ("slot", np.zeros((5, 3), np.int32))
    log_q = dict.fromkeys(("log_kept", "log_expected"), np.zeros(tiny.dataset.num_items, np.float32))
    given = {"encode": "candidates", "queries": queries, "labels": ("buy",), "log_q": log_q}
    builder = BatchBuilder(with_numbers(with_label(tiny.dataset)), **settings, **given)
    batch = builder(np.arange(29), buckets=Buckets(64, 128), key=np.uint64(0))  # of training
    by_example = {name for name, value in batch.items() if len(value) == 29}
    assert by_example | {"user", "positive", "negative"} == BY_EXAMPLE  # the others are of pairs
    shardings = sharding.batch_shardings(sharding.make_mesh(1, 1), batch)
    assert {name for name, s in shardings.items() if s.spec == PartitionSpec("data")} == by_example
