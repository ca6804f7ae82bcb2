"""The ranking model as a task on real batches: what a score may depend on, and what it must survive."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from em3_jax import tasks
from em3_jax.config import parse
from em3_jax.config.registry import BACKBONES
from em3_jax.config.schema.ranking import Cic, RankingSettings
from em3_jax.core.batch import BY_EXAMPLE
from em3_jax.core.fields import Field, Fields
from em3_jax.data.batches import BatchBuilder, Buckets
from em3_jax.models.aggregators import AGGREGATORS
from em3_jax.models.ranking import field_embeddings
from em3_jax.tasks.cic import candidate_counts, content_id_contrast
from em3_jax.tasks.ranking.task import ranking
from tests.conftest import user_error

B, T, W = 24, 5, 8
CONTENTS = ["none", "end_to_end"]
KEY = jax.random.key(0)
CIC = base.ranking().model.cic.to_dict() | {"width": 8, "id_fields": ("item", "category")}


def model_settings(content: str, **changes) -> RankingSettings:
    settings = base.ranking().model.to_dict()
    settings["content"] = content
    settings["backbone_settings"] |= {"hidden": (16,), "attention_hidden": 8}
    settings["fusion_settings"] |= {"width": 8, "ffn_width": 16}
    settings["cic"] |= {"negatives": 4, "width": 8, "id_fields": ("item", "category")}
    return parse.section(RankingSettings, settings | changes, "model")


class Setting:
    """A model with random parameters, a batch of the planted data, and compiled functions of (params, inputs)."""

    def __init__(self, planted, content: str, **changes):
        self.task = ranking(planted.fields, model_settings(content, **changes))
        builder = BatchBuilder(planted, history_length=T, unknown_alpha=0.0, unknown_floor={})
        batch = builder(self.choose_rows(planted), buckets=Buckets(128, 256))
        batch["history_mask"][0] = False  # a user without a history
        random = np.random.default_rng(0)
        rows = random.standard_normal((len(batch["row_id"]), W)).astype(np.float32)
        rows[0] = 0.0
        sets = {name: planted.features(name) for name in ("image", "text")}
        features = {name: (s.tokens, s.mask) for name, s in sets.items()}
        self.inputs = jax.device_get(tasks.gathered(rows, features, batch))
        shapes = jax.eval_shape(self.task.init, KEY, self.inputs)
        self.params = jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
        fast_to_compile = {"xla_backend_optimization_level": 0}
        self.predict = jax.jit(self.task.predict, compiler_options=fast_to_compile)

        def loss(params, rows, tokens, inputs):
            inputs = inputs._replace(rows=rows, tokens=tokens)
            return self.task.loss(params, inputs, KEY, 0)

        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True), compiler_options=fast_to_compile)
        self.loss_and_gradients = lambda inputs: compiled(self.params, inputs.rows, inputs.tokens, inputs)

    @staticmethod
    def choose_rows(planted) -> np.ndarray:
        """[B] rows, the second with an item that lacks a modality."""
        lacking = ~planted.features("image").mask.any(axis=1)
        second = np.flatnonzero(lacking[planted.interactions["item"]])[0]
        return np.array([2000, second, *range(2001, 2000 + B - 1)])

    def logits(self, inputs) -> np.ndarray:
        return np.asarray(self.predict(self.params, inputs))

    def changed(self, **batch):
        return self.inputs._replace(batch=self.inputs.batch | batch)


def edited(tree: dict, items, change) -> dict:
    """A copy of {modality: array} with change(rows) in place of the rows `items`."""
    tree = {name: array.copy() for name, array in tree.items()}
    for array in tree.values():
        array[items] = change(array[items])
    return tree


@pytest.fixture(scope="module")
def setting(planted):
    return functools.cache(functools.partial(Setting, planted))


@pytest.mark.parametrize("content", CONTENTS)
def test_masked_history_positions_do_not_matter(setting, content):
    s = setting(content)
    batch, random = s.inputs.batch, np.random.default_rng(1)
    anything = random.integers(0, batch["item_mask"].sum(), (B, T)).astype(np.int32)
    other = np.where(batch["history_mask"], batch["history_position"], anything)
    assert (other != batch["history_position"]).any()
    np.testing.assert_array_equal(s.logits(s.changed(history_position=other)), s.logits(s.inputs))


@pytest.mark.parametrize("content", CONTENTS)
def test_valid_history_positions_do_matter(setting, content):
    s = setting(content)
    full = s.inputs.batch["history_mask"].all(axis=1)
    other = (s.inputs.batch["history_position"] + 1) % s.inputs.batch["item_mask"].sum()
    difference = np.abs(s.logits(s.changed(history_position=other)) - s.logits(s.inputs))
    assert full.any() and (difference[full] > 1e-4).all()


@pytest.mark.parametrize("content", CONTENTS)
def test_permuting_the_examples_permutes_the_logits(setting, content):
    s = setting(content)
    order = np.random.default_rng(2).permutation(B)
    permuted = {k: v[order] if k in BY_EXAMPLE else v for k, v in s.inputs.batch.items()}
    np.testing.assert_allclose(s.logits(s.changed(**permuted)), s.logits(s.inputs)[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("content", CONTENTS)
def test_the_order_of_the_distinct_items_does_not_matter(setting, content):
    s = setting(content)
    batch = s.inputs.batch
    order = np.random.default_rng(3).permutation(len(batch["item_id"]))
    place = np.argsort(order).astype(np.int32)
    moved = {name: batch[name][order] for name in ("item_id", "item_mask", "item_row", "item_is_known")}
    moved |= {name: place[batch[name]] for name in ("item_position", "history_position")}
    take = lambda tree: {name: x[order] for name, x in tree.items()}  # noqa: E731
    inputs = s.changed(**moved)._replace(tokens=take(s.inputs.tokens), tokens_mask=take(s.inputs.tokens_mask))
    np.testing.assert_allclose(s.logits(inputs), s.logits(s.inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("content", CONTENTS)
def test_an_example_does_not_see_the_others(setting, content):
    s = setting(content)
    other = {"user_row": np.roll(s.inputs.batch["user_row"], 1, axis=0)}
    other["user_row"][0] = s.inputs.batch["user_row"][0]
    assert s.logits(s.changed(**other))[0] == s.logits(s.inputs)[0]


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("lacks", ["nothing", "histories", "modalities", "everything"])
def test_scores_and_gradients_are_finite_whatever_is_missing(setting, content, lacks):
    s = setting(content)
    inputs = s.inputs
    if lacks in ("histories", "everything"):
        inputs = inputs._replace(batch=inputs.batch | {"history_mask": np.zeros((B, T), bool)})
    if lacks in ("modalities", "everything"):
        nothing = {name: np.zeros_like(mask) for name, mask in inputs.tokens_mask.items()}
        inputs = inputs._replace(tokens_mask=nothing)
    assert np.isfinite(s.logits(inputs)).all()
    (loss, aux), gradients = s.loss_and_gradients(inputs)
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    undefined = {"cic_accuracy"} if lacks in ("modalities", "everything") else set()  # NaN: no item to contrast
    assert {name for name, value in aux.items() if not np.isfinite(value)} <= undefined


@pytest.mark.parametrize("content", CONTENTS)
def test_rows_of_weight_zero_have_no_say(setting, content):
    s = setting(content)
    weight = (np.arange(B) < B // 2).astype(np.float32)
    flipped = np.where(weight > 0, s.inputs.batch["label"], 1 - s.inputs.batch["label"])
    (one, _), gradients = s.loss_and_gradients(s.changed(weight=weight))
    (other, _), same = s.loss_and_gradients(s.changed(weight=weight, label=flipped))
    assert one == other
    jax.tree.map(np.testing.assert_array_equal, gradients, same)
    assert s.loss_and_gradients(s.inputs)[0][0] != one


def test_without_content_the_features_are_not_read(setting):
    s = setting("none")
    assert not s.task.uses_content
    nan = {name: np.full_like(tokens, np.nan) for name, tokens in s.inputs.tokens.items()}
    np.testing.assert_array_equal(s.logits(s.inputs._replace(tokens=nan)), s.logits(s.inputs))
    np.testing.assert_array_equal(s.logits(s.inputs._replace(tokens={}, tokens_mask={})), s.logits(s.inputs))
    gradient = s.loss_and_gradients(s.inputs)[1][2]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_with_content_the_features_of_candidate_and_history_matter(setting):
    s = setting("end_to_end")
    assert s.task.uses_content
    batch = s.inputs.batch
    candidate, newest = batch["item_position"][-1], batch["history_position"][-1, -1]
    assert batch["history_mask"][-1, -1] and candidate != newest
    before = s.logits(s.inputs)[-1]
    for item in (candidate, newest):
        tokens = edited(s.inputs.tokens, item, lambda x: x + 1 + np.arange(x.shape[-1]) % 3)
        mask = edited(s.inputs.tokens_mask, item, np.ones_like)
        assert abs(s.logits(s.inputs._replace(tokens=tokens, tokens_mask=mask))[-1] - before) > 1e-4


@pytest.mark.parametrize("backbone", BACKBONES)
def test_content_plugs_into_every_backbone(setting, backbone):
    s = setting("end_to_end", backbone=backbone)
    (loss, _), (of_params, of_rows, _) = s.loss_and_gradients(s.inputs)
    assert np.isfinite(loss) and np.any(of_rows)
    for part in (of_params["model"]["fusion"], of_params["model"]["backbone"], of_params["cic"]):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(part))
        assert any(np.any(leaf) for leaf in jax.tree.leaves(part))
    assert not setting("none", backbone=backbone).task.uses_content


def test_the_item_part_alone_does_not_read_the_content_of_histories(setting):
    whole = setting("end_to_end")
    newest = whole.inputs.batch["history_position"][-1, -1]
    assert newest not in whole.inputs.batch["item_position"]
    tokens = edited(whole.inputs.tokens, newest, lambda x: x + 1 + np.arange(x.shape[-1]) % 3)
    mask = edited(whole.inputs.tokens_mask, newest, np.ones_like)
    for parts, reads in ((("item",), False), (("user",), True), (("item", "user"), True), (("similarity",), True)):
        s = setting("end_to_end", content_parts=parts)
        moved = s.logits(s.inputs._replace(tokens=tokens, tokens_mask=mask))
        assert (moved[-1] != s.logits(s.inputs)[-1]) == reads, parts
        assert ("content_attention" in s.params["model"]) == ("user" in parts)


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_every_aggregator_reads_the_valid_history_alone(setting, aggregator):
    s = setting("end_to_end", content_aggregator=aggregator, content_parts=("user",))
    batch = s.inputs.batch
    newest = batch["history_position"][-1, -1]
    assert batch["history_mask"][-1, -1] and newest not in batch["item_position"]
    tokens = edited(s.inputs.tokens, newest, lambda x: x + 1 + np.arange(x.shape[-1]) % 3)
    mask = edited(s.inputs.tokens_mask, newest, np.ones_like)
    moved = s.logits(s.inputs._replace(tokens=tokens, tokens_mask=mask)) != s.logits(s.inputs)
    names = ((batch["history_position"] == newest) & batch["history_mask"]).any(axis=1)
    assert moved[-1] and not moved[~names].any()
    anything = np.random.default_rng(1).integers(0, batch["item_mask"].sum(), (B, T))
    other = np.where(batch["history_mask"], batch["history_position"], anything.astype(np.int32))
    np.testing.assert_array_equal(s.logits(s.changed(history_position=other)), s.logits(s.inputs))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"content_aggregator": "sum", "content_events": True},
            "config.model.content_events: content_aggregator 'sum' reads no event fields",
        ),
        ({"content_parts": ()}, "config.model.content_parts is empty"),
        ({"content_parts": ("items",)}, "each item, user, similarity or simtier; did you mean 'item'?"),
        ({"backbone": "deepfn"}, "config.model.backbone='deepfn': give din, deepfm, "),
        ({"loss": "bce"}, "config.model.loss='bce': give binary_cross_entropy or"),
    ],
)
def test_unknown_parts_are_one_line(planted, changes, message):
    assert message in user_error(lambda: ranking(planted.fields, model_settings("end_to_end", **changes)))


def test_the_loss_is_the_ranking_loss_plus_alpha_times_cic(setting):
    s = setting("end_to_end")
    loss, aux = s.loss_and_gradients(s.inputs)[0]
    alpha = model_settings("end_to_end").cic.weight
    assert float(loss) == pytest.approx(float(aux["ranking_loss"] + alpha * aux["cic_loss"]), rel=1e-6)
    label, logit = s.inputs.batch["label"], s.logits(s.inputs).astype(np.float64)
    cross_entropy = np.mean(np.log1p(np.exp(-np.where(label == 1, logit, -logit))))
    assert float(aux["ranking_loss"]) == pytest.approx(cross_entropy, rel=1e-5)
    entropies = {f"{name}_attention_entropy" for name in ("id", "content")}
    assert {"cic_accuracy", *entropies, *(f"{name}_uniform" for name in entropies)} <= aux.keys()


def test_cic_leaves_out_items_that_are_padding_unknown_or_without_content(setting):
    """Their content may be moved anywhere: the contrastive loss stays as it is."""
    s = setting("end_to_end")
    batch = s.inputs.batch
    chosen = np.flatnonzero(batch["item_mask"])[:3]
    known, padding = batch["item_is_known"].copy(), batch["item_mask"].copy()
    known[chosen[0]], padding[chosen[1]] = False, False
    mask = edited(s.inputs.tokens_mask, chosen[2], np.zeros_like)
    inputs = s.changed(item_is_known=known, item_mask=padding)._replace(tokens_mask=mask)
    moved = edited(inputs.tokens, chosen, lambda x: -2 * x)
    before = s.loss_and_gradients(inputs)[0][1]["cic_loss"]
    after = s.loss_and_gradients(inputs._replace(tokens=moved))[0][1]["cic_loss"]
    assert before == after
    assert s.loss_and_gradients(s.inputs)[0][1]["cic_loss"] != before


def test_multi_valued_fields_are_the_mean_of_their_values_without_padding():
    random = np.random.default_rng(0)
    rows = random.standard_normal((9, W)).astype(np.float32)
    fields = Fields(user=(), item=(Field("item", 5), Field("tags", 5, 3), Field("color", 4))).item
    position = np.array([[1, 4, 5, 0, 8], [2, 6, 0, 0, 7], [0, 0, 0, 0, 0]])
    expected = np.zeros((3, 3, W))
    expected[0] = rows[1], (rows[4] + rows[5]) / 2, rows[8]
    expected[1] = rows[2], rows[6], rows[7]
    expected[2, 0] = expected[2, 2] = rows[0]
    np.testing.assert_allclose(field_embeddings(rows, position, fields), expected, rtol=1e-6)


def test_candidates_are_counted_whether_an_item_is_named_once_or_for_each_slot():
    once = {
        "item_id": jnp.array([3, 5, 9, 3]),  # the last one is padding
        "item_position": jnp.array([1, 1, 0, 2, 1]),
        "weight": jnp.array([1.0, 1.0, 1.0, 1.0, 0.0]),
    }
    np.testing.assert_array_equal(candidate_counts(once, once["weight"]), [1, 2, 1, 1])
    slots = {
        "item_id": jnp.array([5, 9, 9, 3, 5, 3]),
        "item_position": jnp.array([0, 1, 2, 4, 5]),
        "weight": jnp.ones(5),
    }
    np.testing.assert_array_equal(candidate_counts(slots, slots["weight"]), [2, 2, 2, 1, 2, 1])


def test_cic_over_samples_leaves_what_is_no_candidate_to_the_negatives(planted):
    """The mean of eq. 12-13 by hand: each example's loss is that of a batch where it is alone."""
    s = Setting(planted, "end_to_end", cic=CIC | {"over": "samples", "negatives": 0})
    batch = s.inputs.batch
    positions = np.asarray(batch["item_position"])

    def cic_loss(weight):
        return float(s.loss_and_gradients(s.changed(weight=weight))[0][1]["cic_loss"])

    alone = [cic_loss(np.eye(B, dtype=np.float32)[k]) for k in range(B)]
    counted = np.asarray(batch["item_mask"] & batch["item_is_known"])[positions]
    has_content = np.stack([m.any(axis=1) for m in s.inputs.tokens_mask.values()]).any(axis=0)
    counted &= has_content[positions]
    whole = cic_loss(np.ones(B, np.float32))
    assert counted.sum() > 5
    assert whole == pytest.approx(np.mean(np.array(alone)[counted]), rel=1e-5)
    assert not np.any(np.array(alone)[~counted])
    over_items = Setting(planted, "end_to_end", cic=CIC | {"negatives": 0})
    of_items = float(over_items.loss_and_gradients(over_items.inputs)[0][1]["cic_loss"])
    assert whole != pytest.approx(of_items, rel=1e-3)


def test_cic_from_groups_takes_their_examples_and_where_one_is_alone_those_of_the_batch(planted):
    """By groups of one nothing is left, or what the mean over samples says; mixed, each example counts by its own."""
    random = np.random.default_rng(2)
    batch = BatchBuilder(planted, history_length=T, unknown_alpha=0.0, unknown_floor={}, groups=True)(
        np.arange(B), buckets=Buckets(128, 256)
    )
    items = len(batch["item_id"])
    out = {
        "content": random.standard_normal((items, 8)).astype(np.float32),
        "item_fields": random.standard_normal((items, len(planted.fields.item), 3)).astype(np.float32),
        "item_counts": batch["item_mask"],
        "item_has_content": np.ones(items, bool),
    }

    def cic(group, **changes):
        settings = parse.section(Cic, CIC | {"negatives": 0, "weight": 1.0} | changes, "cic")
        contrast = content_id_contrast(settings, planted.fields)
        inputs = tasks.Inputs(None, {}, {}, batch | {"group": np.asarray(group)})
        params = contrast.heads.init(KEY, *contrast._arguments(out))["params"]
        value, logged = contrast.loss(params, inputs, out, KEY)
        assert value == logged["cic_loss"]
        return float(value), float(logged["cic_accuracy"])

    alone, one = np.arange(B), np.zeros(B, np.int32)
    in_batch = cic(alone, over="samples")
    assert cic(alone, negatives_from="group_or_batch") == pytest.approx(in_batch, rel=1e-5)
    nothing = cic(alone, negatives_from="group")
    assert nothing[0] == 0 and np.isnan(nothing[1])
    of_group = cic(one, negatives_from="group")
    assert cic(one, negatives_from="group_or_batch") == of_group != pytest.approx(in_batch, rel=1e-2)
    half = np.where(alone < B // 2, -1, alone)  # the first half is a group
    batch["weight"] = (alone < B // 2).astype(np.float32)
    first = cic(half, negatives_from="group")
    batch["weight"] = 1 - batch["weight"]
    others = cic(alone, over="samples")
    batch["weight"] = np.ones(B, np.float32)
    mixed = cic(half, negatives_from="group_or_batch")
    assert mixed == pytest.approx(tuple(np.mean([first, others], axis=0)), rel=1e-5)
