"""LEMUR: the bank against encoding everything, sampling, what costs what, and runs that are killed."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import lemur as lemur_config
from em3_jax import metrics
from em3_jax.config import parse
from em3_jax.config.schema.lemur import LemurSettings
from em3_jax.core import rng, trees
from em3_jax.core.errors import UserError
from em3_jax.data.batches import BatchBuilder, Buckets
from em3_jax.models.encoders.bert import Layer
from em3_jax.models.encoders.fields import VectorLayout
from em3_jax.models.lemur import Decoder, similarities
from em3_jax.tables import memory_bank
from em3_jax.tasks.lemur.task import lemur
from tests.tiny import TOKENS

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(60)]

B, T = 13, 17
LAYOUTS = {name: VectorLayout() for name in TOKENS}


def settings(**changes) -> LemurSettings:
    model = lemur_config.get_config().model.to_dict()
    model["encoder"] |= {"width": 8, "layers": 1, "heads": 2, "mlp_width": 8, "output": 6}
    model["backbone_settings"] |= {"hidden": (8,), "attention_hidden": 4}
    model |= {"short_history": 5, "decoder_hidden": 8}
    return parse.section(LemurSettings, model | changes, "model")


@pytest.fixture(scope="module")
def batches(tiny):
    """`encode` -> a training batch of the tiny dataset, and its features as tables."""
    features = {name: tiny.dataset.features(name) for name in TOKENS}
    constants = {name: (jnp.asarray(f.tokens, jnp.float32), jnp.asarray(f.mask)) for name, f in features.items()}
    rows = np.asarray(tiny.dataset.split_rows("train"))[60 : 60 + B]

    @functools.cache
    def make(encode, distinct_items=True, some=B):
        builder = BatchBuilder(
            tiny.dataset,
            history_length=T,
            unknown_alpha=0.0,
            unknown_floor={},
            encode=encode,
            distinct_items=distinct_items,
        )
        return builder(rows[:some], buckets=Buckets(64, 128, encode=16), key=rng.numpy_key(0, "unknown", 0))

    return make, constants


class Prepared:
    """A task with parameters, table rows and a bank for the batches of the tiny dataset."""

    def __init__(self, tiny, batches, last=T, **changes):
        self.make, self.constants = batches
        task = lemur(tiny.dataset.fields, LAYOUTS, {}, settings(**changes), has_queries=False, last=last)
        compiled = {name: jax.jit(getattr(task, name)) for name in ("init", "loss", "predict")}
        self.task = types.SimpleNamespace(inputs=task.inputs, **compiled)
        self.items = tiny.dataset.num_items
        batch = self.make("candidates")
        self.rows = 0.1 * jax.random.normal(jax.random.key(2), (len(batch["row_id"]), 8)).at[0].set(0)
        self.params = self.task.init(jax.random.key(1), self.inputs(batch, memory_bank.init(self.items, 6)))
        self.params = jax.tree.map(lambda x: x + 0.05, self.params)  # nothing is zero

    def inputs(self, batch, bank, rows=None):
        batch = jax.tree.map(jnp.asarray, batch) | {"stored": memory_bank.read(bank, batch["item_id"])}
        return self.task.inputs(self.rows if rows is None else rows, self.constants, batch)

    def loss(self, params, batch, bank, step=3):
        return self.task.loss(params, self.inputs(batch, bank), jax.random.key(0), jnp.int32(step))

    def gradients(self, batch, bank):
        return jax.value_and_grad(lambda params: self.loss(params, batch, bank)[0])(self.params)

    def bank_of_all(self):
        """A bank in which each item of the batch stands as the encoder makes it now."""
        batch, bank = self.make("all"), memory_bank.init(self.items, 6)
        writes = self.loss(self.params, batch, bank)[1]["writes"]
        return memory_bank.write(bank, batch["item_id"], memory_bank.read(bank, batch["item_id"]), writes, jnp.int32(2))


def close(one, other, rtol=2e-5):
    one, other = trees.named_leaves(one), trees.named_leaves(other)
    assert list(one) == list(other)
    for name in one:
        # The bias of an attention's keys has no gradient but rounding errors.
        atol = max(rtol * np.abs(other[name]).max(), 1e-7)
        np.testing.assert_allclose(one[name], other[name], rtol=rtol, atol=atol, err_msg=name)


def test_with_a_bank_written_just_now_the_scores_are_those_of_encoding_every_history_item(tiny, batches):
    prepared, every = Prepared(tiny, batches), Prepared(tiny, batches, encode="all")
    predict = lambda of, batch, bank: of.task.predict(of.params, of.inputs(batch, bank))  # noqa: E731
    every_slot = predict(every, every.make("all", distinct_items=False), memory_bank.init(every.items, 6))
    np.testing.assert_allclose(
        predict(every, every.make("all"), memory_bank.init(every.items, 6)), every_slot, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        predict(prepared, prepared.make("candidates"), prepared.bank_of_all()), every_slot, rtol=1e-4, atol=1e-5
    )
    empty = predict(prepared, prepared.make("candidates"), memory_bank.init(prepared.items, 6))
    assert np.abs(empty - every_slot).max() > 1e-3  # never-written rows are masked, and that is seen


def test_a_score_does_not_depend_on_the_other_rows_of_the_batch(tiny, batches):
    """The bank is stale, so it would be seen if a history read what another row has just encoded."""
    prepared = Prepared(tiny, batches)
    stale = prepared.bank_of_all()
    stale |= {"vector": stale["vector"] + 1.0}
    predict = lambda batch: prepared.task.predict(prepared.params, prepared.inputs(batch, stale))  # noqa: E731
    prepared.rows = jnp.ones_like(prepared.rows).at[0].set(0)  # whatever rows a batch names, they are the same
    few, many = predict(prepared.make("candidates", some=4)), predict(prepared.make("candidates"))
    np.testing.assert_allclose(few, many[:4], rtol=1e-5, atol=1e-6)


def test_a_query_is_made_of_the_last_events_alone(tiny, batches):
    """In the slots before them a candidate may have events like itself, by which a query would know its document."""
    prepared = Prepared(tiny, batches, last=4, ranking_weight=0.0)
    bank, batch, slot = prepared.bank_of_all(), prepared.make("candidates"), np.arange(T)

    def predict(kept):
        some = batch | {"history_mask": batch["history_mask"] & kept}
        return prepared.task.predict(prepared.params, prepared.inputs(some, bank))

    every = predict(slot >= 0)
    np.testing.assert_allclose(predict(slot >= T - 4), every, rtol=1e-6)
    assert np.abs(predict(slot >= T - 3) - every).max() > 1e-3


def test_gradients_through_fresh_histories_are_those_of_encoding_every_slot(tiny, batches):
    """All distinct items are encoded in the step, so all of the gradient is there; against one encoding a slot."""
    prepared = Prepared(tiny, batches)
    empty = memory_bank.init(prepared.items, 6)
    value, gradient = prepared.gradients(prepared.make("all"), empty)
    direct_value, direct = prepared.gradients(prepared.make("all", distinct_items=False), empty)
    np.testing.assert_allclose(value, direct_value, rtol=1e-5)
    close(gradient, direct, rtol=1e-3)


def test_without_the_gradient_of_histories_the_scores_stay_and_the_encoders_gradient_is_another(tiny, batches):
    with_it, without = (Prepared(tiny, batches, history_gradient=on) for on in (True, False))
    batch, empty = with_it.make("all"), memory_bank.init(with_it.items, 6)
    (value, gradient), (same, other) = with_it.gradients(batch, empty), without.gradients(batch, empty)
    np.testing.assert_allclose(value, same, rtol=1e-6)
    assert np.abs(gradient["encoder"]["cls"] - other["encoder"]["cls"]).max() > 1e-6


def test_cut_off_from_the_ranking_loss_the_encoder_learns_from_sqdc_alone(tiny, batches):
    no_contrast = {"weight": 0.0, "scale": 20.0, "mask_group": True}
    batch = batches[0]("candidates")
    for changes, moves in (
        ({"ranking_gradient": False, "sqdc": no_contrast}, False),
        ({"ranking_gradient": False}, True),
        ({"ranking_weight": 0.0}, True),
        ({"sqdc": no_contrast}, True),
    ):
        prepared = Prepared(tiny, batches, **changes)
        gradient = prepared.gradients(batch, prepared.bank_of_all())[1]
        assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient["encoder"])) == moves, changes


def test_a_layer_that_is_read_at_its_first_token_gives_what_the_whole_layer_has_there():
    """Gradients too, but for the key's bias, which a softmax does not see and whose gradient is rounding error in the other."""
    random = np.random.default_rng(0)
    mask = random.random((5, 7)) < 0.5
    mask[:, 0], mask[0, 1:] = True, False
    x = jnp.asarray(random.normal(size=(5 * 7, 8)), jnp.float32)
    whole, first = (Layer(2, 16, 1e-6, nn.gelu, x.dtype, first_alone=alone) for alone in (False, True))
    params = jax.tree.map(lambda leaf: leaf + 0.1, first.init(jax.random.key(0), x, mask)["params"])
    weight = jnp.asarray(random.normal(size=(5, 8)), jnp.float32)

    def value(layer, params, x):
        found = layer.apply({"params": params}, x, mask)
        return jnp.sum(weight * (found if layer.first_alone else found.reshape(5, 7, 8)[:, 0]))

    both = [jax.value_and_grad(lambda *a, of=of: value(of, *a), argnums=(0, 1))(params, x) for of in (first, whole)]
    for _, (of_params, _) in both:
        of_params["attention"]["key"].pop("bias")
    for one, other in zip(*map(jax.tree.leaves, both), strict=True):
        assert (np.abs(one - other) <= 1e-4 * np.abs(other).max()).all()


@pytest.fixture(scope="module")
def full(tiny, batches):
    """The task that encodes all candidates, whose parameters serve others too."""
    return Prepared(tiny, batches)


def sampled(full, tiny, p: float, q: float):
    """The task of `full` with p and q."""
    return lemur(tiny.dataset.fields, LAYOUTS, {}, settings(forward_percent=p, backward_percent=q), has_queries=False)


def test_what_is_not_sampled_is_read_from_the_bank(full, tiny):
    batch, bank = full.make("candidates"), full.bank_of_all()
    value, aux = full.loss(full.params, batch, bank)
    assert int(aux["encoded_items"]) == batch["encode_mask"].sum()
    half = jax.jit(sampled(full, tiny, 50.0, 25.0).loss)
    half_value = half(full.params, full.inputs(batch, bank), jax.random.key(0), jnp.int32(3))[0]
    np.testing.assert_allclose(half_value, value, rtol=1e-5)  # the bank holds just what the encoder gives


@pytest.mark.parametrize("p,q", [(20.0, 20.0), (50.0, 25.0), (33.3, 0.0)])
def test_p_and_q_are_shares_of_the_distinct_candidates_however_long_their_padded_block(full, tiny, p, q):
    """Counted by the gradient of each item's content, on batches of 2 distinct candidates and more."""
    task, bank = sampled(full, tiny, p, q), full.bank_of_all()
    whole = full.make("candidates")  # one shape for all: of the block of candidates, more and more are real
    # What has no content has no gradient to show.
    constants = {name: (tokens, jnp.ones_like(mask)) for name, (tokens, mask) in full.constants.items()}

    @jax.jit
    def trace(batch):
        inputs = task.inputs(full.rows, constants, batch | {"stored": memory_bank.read(bank, batch["item_id"])})

        def loss(tokens):
            return task.loss(full.params, inputs._replace(tokens=tokens), jax.random.key(0), jnp.int32(3))

        gradient, aux = jax.grad(loss, has_aux=True)(inputs.tokens)
        moved = sum(jnp.abs(leaf).sum(axis=(1, 2)) for leaf in gradient.values()) > 0
        return moved.sum(), aux["encoded_items"], aux["writes"]

    sizes = range(2, int(whole["encode_mask"].sum()) + 1)
    for real in sizes:
        mask = np.arange(len(whole["encode_mask"])) < real
        moved, encoded, writes = trace(jax.tree.map(jnp.asarray, whole | {"encode_mask": mask}))
        share = [-(-real * round(percent * 10) // 1000) for percent in (q, p)]
        assert [int(moved), int(encoded)] == share, real
        assert not np.any(np.asarray(writes.encoded) & ~mask)
    assert len(sizes) > 5


def test_what_the_encoder_costs_follows_p_and_q(full, tiny):
    batch = full.make("candidates")
    inputs = full.inputs(batch, full.bank_of_all())

    def flops(layers: int, percent: float) -> float:
        encoder = parse.plain(settings().encoder) | {"layers": layers}
        shares = {"forward_percent": percent, "backward_percent": percent}
        task = lemur(tiny.dataset.fields, LAYOUTS, {}, settings(encoder=encoder, **shares), has_queries=False)
        params = jax.eval_shape(task.init, jax.random.key(0), inputs)
        loss = lambda params, inputs: task.loss(params, inputs, jax.random.key(0), jnp.int32(0))[0]  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(params, inputs).cost_analysis()["flops"]

    everything, quarter = (flops(3, percent) - flops(1, percent) for percent in (100.0, 25.0))
    assert 0 < quarter < 0.27 * everything


def test_the_cost_of_the_encoder_does_not_depend_on_the_history(tiny):
    """FLOPs of the compiled prediction at T = 50 and T = 1000, with an encoder of one layer and of three."""
    rows = np.asarray(tiny.dataset.split_rows("train"))[60 : 60 + B]
    features = {name: tiny.dataset.features(name) for name in TOKENS}
    constants = {name: (jnp.asarray(f.tokens, jnp.float32), jnp.asarray(f.mask)) for name, f in features.items()}

    def flops(length: int, layers: int) -> float:
        encoder = parse.plain(settings().encoder) | {"layers": layers}
        task = lemur(tiny.dataset.fields, LAYOUTS, {}, settings(encoder=encoder), has_queries=False)
        builder = BatchBuilder(
            tiny.dataset, history_length=length, unknown_alpha=0.0, unknown_floor={}, encode="candidates"
        )
        batch = builder(rows, buckets=Buckets(64, 128, encode=16))

        def inputs(batch, table):
            stored = memory_bank.read(memory_bank.init(tiny.dataset.num_items, 6), batch["item_id"])
            return task.inputs(table, constants, batch | {"stored": stored})

        def loss(params, table, batch):
            return task.loss(params, inputs(batch, table), jax.random.key(0), jnp.int32(0))[0]

        table = jnp.zeros((len(batch["row_id"]), 8))
        params = jax.eval_shape(lambda: task.init(jax.random.key(0), inputs(batch, table)))
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, table, batch).compile()
        return compiled.cost_analysis()["flops"]

    short, long = (flops(length, 3) - flops(length, 1) for length in (50, 1000))
    assert short > 0 and abs(long - short) < 0.01 * short
    assert flops(1000, 1) > flops(50, 1)  # the history modules do pay


def test_the_task_tells_sqdc_which_rows_show_the_same_item(tiny, batches):
    """The batch's clicks all turned to one candidate: nothing is left to contrast."""
    prepared = Prepared(tiny, batches, sqdc={"weight": 1.0, "scale": 10.0, "mask_group": False})
    batch, bank = prepared.make("candidates"), prepared.bank_of_all()
    assert float(prepared.loss(prepared.params, batch, bank)[1]["sqdc_loss"]) > 0.1
    one = batch | {"item_position": np.full_like(batch["item_position"], batch["item_position"][0])}
    np.testing.assert_allclose(prepared.loss(prepared.params, one, bank)[1]["sqdc_loss"], 0.0, atol=1e-6)


def test_an_encoder_that_trains_on_sqdc_alone_is_scored_by_what_sqdc_orders_by(tiny, batches):
    prepared = Prepared(tiny, batches, ranking_weight=0.0)
    batch, bank = prepared.make("candidates"), prepared.bank_of_all()
    scores = lambda params: np.asarray(prepared.task.predict(params, prepared.inputs(batch, bank)))  # noqa: E731
    moved = dict(prepared.params) | {"model": dict(prepared.params["model"])}
    moved["model"]["backbone"] = jax.tree.map(lambda leaf: leaf + 1.0, moved["model"]["backbone"])
    np.testing.assert_array_equal(scores(moved), scores(prepared.params))  # the ranker has no say
    scale = lemur_config.get_config().model.sqdc.scale
    assert np.abs(scores(prepared.params)).max() <= scale * (1 + 1e-5) and np.ptp(scores(prepared.params)) > 1e-3
    # The positives that the loss draws near score higher afterwards, beside the others.
    step = lambda params: prepared.gradients(batch, bank)[1]  # noqa: E731
    trained = jax.tree.map(lambda leaf, g: leaf - 0.05 * g, prepared.params, step(prepared.params))
    clicked = batch["label"] > 0
    margin = lambda score: score[clicked].mean() - score[~clicked].mean()  # noqa: E731
    assert margin(scores(trained)) > margin(scores(prepared.params))


def test_the_decoder_is_its_formula_and_similarities_are_sorted():
    random = np.random.default_rng(0)
    first, slots = random.normal(size=(3, 7)).astype(np.float32), random.normal(size=(3, 11, 4)).astype(np.float32)
    mask = random.random((3, 11)) < 0.6
    mask[2] = False
    decoder = Decoder(2, 5)
    found, variables = decoder.init_with_output(jax.random.key(0), first, slots, mask)
    params = variables["params"]
    query = first @ params["first"]["kernel"] + params["first"]["bias"]
    for k in range(2):
        score = np.where(mask[:2], np.einsum("bd,btd->bt", query[:2], slots[:2]) / 2.0, -np.inf)
        weight = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
        read, ffn = np.einsum("bt,btd->bd", weight, slots[:2]), params[f"ffn{k}"]
        hidden = np.maximum(read @ ffn["Dense_0"]["kernel"] + ffn["Dense_0"]["bias"], 0)
        query = hidden @ ffn["Dense_1"]["kernel"] + ffn["Dense_1"]["bias"]
    np.testing.assert_allclose(found[:2], query, rtol=1e-4, atol=1e-5)
    assert not found[2].any()  # nothing to read

    cosine, ranked = np.split(
        np.asarray(similarities(slots[:, 0], slots, mask, np.linalg.norm(slots, axis=2))), 2, axis=1
    )
    for b in range(3):
        direct = [
            s @ slots[b, 0] / np.linalg.norm(s) / np.linalg.norm(slots[b, 0]) if m else 0.0
            for s, m in zip(slots[b], mask[b], strict=True)
        ]
        np.testing.assert_allclose(cosine[b], direct, rtol=1e-4, atol=1e-5)
        count = mask[b].sum()
        np.testing.assert_allclose(ranked[b, :count], np.sort(np.array(direct)[mask[b]])[::-1], rtol=1e-4, atol=1e-5)
        assert not ranked[b, count:].any()


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"encode": "some"}, "config.model.encode='some': give candidates or all"),
        ({"history_modules": ("longer",)}, "did you mean 'long'"),
        ({"forward_percent": 20.0}, "backward_percent=100.0; give 0 <= backward_percent"),
        ({"ranking_weight": 0.0, "sqdc": {"weight": 0.0, "scale": 1.0, "mask_group": True}}, "both 0; give one"),
        ({"encoder": {"layers": 0}}, "config.model.encoder.layers=0: give a whole number of 1 or more"),
        ({"encoder": {"width": 10, "layers": 1, "heads": 4, "mlp_width": 8, "output": 6}}, "4 heads do not divide"),
    ],
)
def test_mistakes_in_the_settings(tiny, changes, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        lemur(tiny.dataset.fields, LAYOUTS, {}, settings(**changes), has_queries=False)


def test_reported_numbers(tiny, batches):
    """Coverage and staleness of a bank whose rows were written at known steps."""
    prepared = Prepared(tiny, batches)
    batch, bank = prepared.make("candidates"), prepared.bank_of_all()
    aux = prepared.loss(prepared.params, batch, bank, step=12)[1]
    assert float(aux["coverage_long"]) == 1 and float(aux["coverage_short"]) == 1
    assert float(aux["staleness_steps"]) == 10
    np.testing.assert_allclose(float(aux["staleness_cosine"]), 1, rtol=1e-5)
    forgotten = batch["item_id"][batch["history_position"][batch["history_mask"]]][0]
    bank = bank | {"written": bank["written"].at[forgotten].set(memory_bank.NEVER)}
    aux = prepared.loss(prepared.params, batch, bank, step=12)[1]
    slots = batch["item_id"][batch["history_position"]]
    share = (batch["history_mask"] & (slots != forgotten)).sum() / batch["history_mask"].sum()
    encoded = np.isin(forgotten, batch["item_id"][batch["encode_position"]])
    np.testing.assert_allclose(float(aux["coverage_long"]), 1 if encoded else share, rtol=1e-6)


def test_metrics_by_group_count_what_they_leave_out():
    gauc = metrics.gauc(np.array([1, 0, 1, 1]), np.array([2.0, 1.0, 0.0, 1.0]), np.array([5, 5, 6, 6]))
    assert (gauc.value, gauc.groups_used, gauc.groups_left_out) == (1.0, 1, 1)
