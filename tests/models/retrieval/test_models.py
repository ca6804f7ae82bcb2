"""Retrieval models: loss and scores on a tiny graph against the papers' formulas in dense numpy."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from em3_jax.config import registry
from em3_jax.core.errors import UserError
from em3_jax.models.retrieval.em3_released import contrast_over_all
from tests.models.fusion import naive
from tests.models.retrieval import dense
from tests.models.retrieval.dense import BATCH, ITEMS, NEGATIVE, NUM_ITEMS, NUM_USERS, POSITIVE, SHARE, USER, D, K

FUSION = {"queries": 2, "layers": 1, "heads": naive.H, "ffn_width": naive.FFN, "dropout": 0.0}
SETTINGS = {
    "bpr": {"l2": 0.03},
    "lightgcn": {"layers": K, "l2": 0.03},
    "vbpr": {"content_width": 4, "l2": 0.03, "l2_content": 0.02},
    "slmrec": {"layers": K, "temperature": 0.3, "ssl_temperature": 0.6, "ssl_weight": 0.2},
    "lattice": {"layers": K, "item_layers": 2, "neighbours": 3, "frozen_share": 0.6, "search_every": 1, "l2": 0.03},
    "bm3": {"layers": K, "dropout": 0.0, "content_weight": 1.5, "l2": 0.03},
    "freedom": {"layers": K, "item_layers": 2, "modality_weights": SHARE, "content_weight": 0.3},
    "em3": {
        "layers": K, "item_layers": 2, "modality_weights": SHARE, "fusion": "fq_former", "fusion_settings": FUSION,
        "cic_weight": 0.4, "cic_temperature": 0.3, "cic_negatives": 0,
    },
    "em3_as_released": {
        "layers": K, "modality_weights": SHARE, "queries": 2, "dropout": 0.0, "cic_weight": 0.4, "cic_temperature": 0.3,
    },
}  # fmt: skip
FEATURES = dense.features()
UNIT = {m: x / np.linalg.norm(x, axis=1, keepdims=True) for m, x in FEATURES.items()}


def make(name: str, **changes):
    return registry.retrieval(name, {"width": D} | SETTINGS[name] | changes, NUM_USERS, NUM_ITEMS)


class Evaluated(NamedTuple):
    """What the model `name` gives with random parameters: `params` in f64, towers, loss, its named scalars, and its gradient."""

    params: dict
    users: np.ndarray
    items: np.ndarray
    loss: float
    aux: dict
    gradient: dict


@functools.cache
def evaluated(name: str) -> Evaluated:
    model, graphs = make(name), dense.graphs()
    params = dense.random_params(model)

    @jax.jit
    def run(params):
        def loss(params):
            rngs = {"dropout": jax.random.key(5), "negatives": jax.random.key(6)}
            return model.apply({"params": params}, FEATURES, graphs, *BATCH, method="loss", rngs=rngs)

        towers = model.apply({"params": params}, FEATURES, graphs, train=False)
        return towers, jax.value_and_grad(loss, has_aux=True)(params)

    with jax.default_matmul_precision("float32"):
        (users, items), ((loss, aux), gradient) = run(params)
    return Evaluated(dense.f64(params), np.asarray(users), np.asarray(items), float(loss), aux, gradient)


def check(name: str, users: np.ndarray, items: np.ndarray, loss: float) -> None:
    got = evaluated(name)
    assert got.users.shape == users.shape and got.items.shape == items.shape
    np.testing.assert_allclose(got.users @ got.items.T, users @ items.T, rtol=2e-4, atol=2e-4)
    assert got.loss == pytest.approx(loss, rel=2e-5)
    assert all(jnp.shape(value) == () for value in got.aux.values())


def project(p: dict) -> dict[str, np.ndarray]:
    """{modality: W f + b}."""
    return {m: x @ p["content"][f"{m}_kernel"] + p["content"].get(f"{m}_bias", 0.0) for m, x in FEATURES.items()}


def along(x: np.ndarray, layers: int) -> np.ndarray:
    mixed = sum(SHARE[m] * matrix for m, matrix in ITEMS.items())
    return np.linalg.matrix_power(mixed, layers) @ x


def test_bpr():
    p = evaluated("bpr").params
    users, items = p["user_embedding"], p["item_embedding"]
    norm = dense.squared((users, USER), (items, POSITIVE), (items, NEGATIVE))
    check("bpr", users, items, dense.bpr(users, items) + 0.03 * norm)


def test_lightgcn():
    p = evaluated("lightgcn").params
    ego = p["user_embedding"], p["item_embedding"]
    users, items = dense.light_gcn(*ego, K)
    norm = dense.squared((ego[0], USER), (ego[1], POSITIVE), (ego[1], NEGATIVE))
    check("lightgcn", users, items, dense.bpr(users, items) + 0.03 * norm)


def test_vbpr():
    p = evaluated("vbpr").params
    f = np.concatenate([UNIT["image"], UNIT["text"]], axis=1)
    kernel = np.concatenate([p["content"]["image_kernel"], p["content"]["text_kernel"]])
    matrix, bias = kernel[:, :-1], kernel[:, -1]
    score = np.empty((NUM_USERS, NUM_ITEMS))
    for u in range(NUM_USERS):
        for i in range(NUM_ITEMS):
            score[u, i] = (
                p["item_bias"][i]
                + p["user_embedding"][u] @ p["item_embedding"][i]
                + p["user_content"][u] @ (f[i] @ matrix)
                + bias @ f[i]
            )
    items = [(p[name], rows) for name in ("item_embedding", "item_bias") for rows in (POSITIVE, NEGATIVE)]
    norm = dense.squared((p["user_embedding"], USER), (p["user_content"], USER), *items)
    loss = dense.bpr(score, np.eye(NUM_ITEMS)) + 0.03 * norm + 0.02 * np.sum(kernel**2)
    got = evaluated("vbpr")
    np.testing.assert_allclose(got.users @ got.items.T, score, rtol=1e-4, atol=1e-4)
    assert got.loss == pytest.approx(loss, rel=2e-5)


def test_slmrec():
    p = evaluated("slmrec").params
    starts = [p["item_embedding"]]
    starts += [UNIT[m] @ p["content"][f"{m}_kernel"] + p["content"][f"{m}_bias"] for m in ("image", "text")]
    views = [dense.light_gcn(p["user_embedding"], start, K) for start in starts]
    users = naive.dense(np.concatenate([u for u, _ in views], axis=1), p["user_join"])
    items = naive.dense(np.concatenate([i for _, i in views], axis=1), p["item_join"])
    ids, image, text = (items[POSITIVE] for _, items in views)
    g = p["alignment"]
    fine = naive.dense(ids, g["common_0"])
    coarse = naive.dense(fine, g["common_1"])
    alignment = dense.info_nce(fine, naive.dense(image, g["modality_0"]), 0.6)
    alignment += dense.info_nce(coarse, naive.dense(text, g["modality_1"]), 0.6)
    assert coarse.shape[1] == D // 2
    check("slmrec", users, items, dense.info_nce(users[USER], items[POSITIVE], 0.3) + 0.2 * alignment)


def test_lattice():
    p = evaluated("lattice").params
    logits = np.exp(p["modality_logits"]["logits"])
    graph = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for share, m in zip(logits / logits.sum(), ("image", "text"), strict=True):
        similarity = dense.cosines(project(p)[m], project(p)[m])
        learnt = np.zeros((NUM_ITEMS, NUM_ITEMS))
        for i in range(NUM_ITEMS):
            best = np.argsort(-similarity[i])[:3]
            learnt[i, best] = np.maximum(similarity[i, best], 0)
        degree = learnt.sum(axis=1)
        graph += share * (0.6 * ITEMS[m] + 0.4 * learnt / np.sqrt(degree[:, None] * degree[None, :]))
    h = graph @ graph @ p["item_embedding"]
    users, items = dense.light_gcn(p["user_embedding"], p["item_embedding"], K)
    items = items + h / np.linalg.norm(h, axis=1, keepdims=True)
    norm = dense.squared((users, USER), (items, POSITIVE), (items, NEGATIVE))
    check("lattice", users, items, dense.bpr(users, items) + 0.03 * norm)


def test_bm3():
    p = evaluated("bm3").params
    users, items = dense.light_gcn(p["user_embedding"], p["item_embedding"], K)
    items = items + p["item_embedding"]
    online = functools.partial(naive.dense, p=p["predictor"])
    u, i = users[USER], items[POSITIVE]

    def c(x, y):
        return -np.mean(np.diagonal(dense.cosines(x, y)))

    loss = c(online(u), i) + c(online(i), u)
    for x in project(p).values():
        loss += 1.5 * (c(online(x[POSITIVE]), i) + c(online(x[POSITIVE]), x[POSITIVE]))
    loss += 0.03 * dense.squared((users, USER), (items, POSITIVE))
    check("bm3", online(users), online(items), loss)


def test_freedom():
    p = evaluated("freedom").params
    users, items = dense.light_gcn(p["user_embedding"], p["item_embedding"], K)
    items = items + along(p["item_embedding"], 2)
    loss = dense.bpr(users, items) + 0.3 * sum(dense.bpr(users, x) for x in project(p).values())
    check("freedom", users, items, loss)


def test_em3_is_the_papers_text():
    p = evaluated("em3").params
    f = p["fusion"]
    content = np.empty((NUM_ITEMS, D))
    for i in range(NUM_ITEMS):
        tokens = [
            naive.dense(FEATURES[m][i : i + 1], f["modalities"][f"{m}_fc"]) + f["modalities"][f"{m}_embedding"]
            for m in ("image", "text")
        ]
        x = np.concatenate([f["queries"], *tokens])
        content[i] = naive.dense(naive.transformer_layer(x, x, f["layer_0"])[:2].ravel(), f["join"])
    users, items = dense.light_gcn(p["user_embedding"], p["item_embedding"], K)
    mm_users, mm_items = dense.light_gcn(np.zeros((NUM_USERS, D)), content, K)
    users = np.concatenate([users, mm_users], axis=1)
    ids = np.concatenate([p["item_embedding"], content], axis=1)
    items = np.concatenate([items, mm_items], axis=1) + along(ids, 2)
    batch = np.unique([*POSITIVE, *NEGATIVE])  # each item once
    one = naive.dense(content[batch], p["heads"]["content"])
    other = naive.dense(p["item_embedding"][batch], p["heads"]["ids"])
    cic = 0.5 * (dense.info_nce(one, other, 0.3) + dense.info_nce(other, one, 0.3))
    assert evaluated("em3").aux["cic_loss"] == pytest.approx(cic, rel=1e-4)
    check("em3", users, items, dense.bpr(users, items) + 0.4 * cic)


def released_content(f: dict) -> np.ndarray:
    """[NUM_ITEMS, D] the released fusion module item by item, all tokens computed and the queries' outputs kept."""
    content = np.empty((NUM_ITEMS, D))
    for i in range(NUM_ITEMS):
        tokens = [naive.dense(FEATURES[m][i : i + 1], f[f"{m}_fc"]) for m in ("image", "text")]
        x = np.concatenate([f["queries"], *tokens])
        heads = []
        for h in np.split(np.arange(D), 4):
            query, key, value = (naive.dense(x, f[name])[:, h] for name in ("query", "key", "value"))
            weight = np.exp(query @ key.T / np.sqrt(D / 4 + 1e-5))
            heads.append(weight / weight.sum(axis=1, keepdims=True) @ value)
        y = x + naive.dense(np.concatenate(heads, axis=1), f["output"])
        y = (y - y.mean(axis=1, keepdims=True)) / np.sqrt(y.var(axis=1, keepdims=True) + 1e-5)
        content[i] = naive.dense((y * f["norm"]["scale"] + f["norm"]["bias"])[:2].ravel(), f["join"])
    return content


def test_em3_as_released_is_the_released_code():
    p = evaluated("em3_as_released").params
    content = released_content(p["fusion"])
    users, items = dense.light_gcn(p["user_embedding"], p["item_embedding"], K)
    mm_users, mm_items = dense.light_gcn(np.zeros((NUM_USERS, D)), content, K)
    items, mm_items = items + along(p["item_embedding"], 1), mm_items + along(content, 1)
    model = make("em3_as_released").bind({"params": p}, rngs={"negatives": jax.random.key(6)})
    drawn = np.asarray(jax.random.randint(model.make_rng("negatives"), (NUM_ITEMS, 16), 0, NUM_ITEMS))
    cic = dense.released_cic(naive.dense(mm_items, p["content_head"]), naive.dense(items, p["id_head"]), drawn, 0.3)
    assert evaluated("em3_as_released").aux["cic_loss"] == pytest.approx(cic, rel=1e-4)
    users, items = np.concatenate([users, mm_users], axis=1), np.concatenate([items, mm_items], axis=1)
    check("em3_as_released", users, items, dense.bpr(users, items) + 0.4 * cic)


def test_contrast_over_all_draws_with_replacement_itself_included():
    random = np.random.default_rng(0)
    content, ids = (random.normal(size=(5, 3)).astype(np.float32) for _ in range(2))
    for seed in range(3):
        drawn = np.asarray(jax.random.randint(jax.random.key(seed), (5, 40), 0, 5))
        assert (drawn == np.arange(5)[:, None]).any() and drawn.min() == 0 and drawn.max() == 4
        got = contrast_over_all(content, ids, 0.3, 40, jax.random.key(seed))
        assert got == pytest.approx(dense.released_cic(content, ids, drawn, 0.3), rel=1e-5)


# What all have in common.


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_parameter_gets_a_finite_gradient(name):
    for path, leaf in jax.tree_util.tree_leaves_with_path(evaluated(name).gradient):
        parameter = jax.tree_util.keystr(path)
        softmax_ignores = parameter.endswith("['key']['bias']")
        assert np.isfinite(leaf).all() and (np.any(leaf) or softmax_ignores), f"{parameter} does not learn"


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_embeddings_are_named_as_promised(name):
    params = evaluated(name).params
    assert params["user_embedding"].shape == (NUM_USERS, D) and params["item_embedding"].shape == (NUM_ITEMS, D)


@pytest.mark.parametrize("name", sorted(set(SETTINGS) - {"bpr", "lightgcn"}))
def test_a_model_of_content_refuses_data_without(name):
    graphs = dense.graphs()._replace(items={})
    with pytest.raises(UserError, match=r"set config\.data\.features"):
        make(name).init({"params": jax.random.key(0)}, {}, graphs, *BATCH, method="loss")


def test_weights_of_other_modalities_are_refused_and_none_means_equal():
    rngs = {"params": jax.random.key(0)}
    with pytest.raises(UserError, match=r"names \['image'\], config.data.features \['image', 'text'\]"):
        make("freedom", modality_weights={"image": 1.0}).init(rngs, FEATURES, dense.graphs(), *BATCH, method="loss")
    params = dense.random_params(make("freedom"))
    towers = [
        make("freedom", modality_weights=FrozenDict(weights)).apply(
            {"params": params}, FEATURES, dense.graphs(), train=False
        )
        for weights in ({}, {"image": 0.5, "text": 0.5})
    ]
    np.testing.assert_array_equal(towers[0][1], towers[1][1])


def test_settings_of_the_fusion_module_are_named_where_they_stand():
    with pytest.raises(UserError, match=r"config.model.retrieval_settings.fusion 'fq_fromer' is unknown"):
        make("em3", fusion="fq_fromer")
    with pytest.raises(UserError, match=r"config.model.retrieval_settings.fusion_settings.depth: unknown key"):
        make("em3", fusion_settings=FUSION | {"depth": 1})
    with pytest.raises(UserError, match=r"fusion_settings.width: is that of the model; set config.model.retrieval"):
        make("em3", fusion_settings=FUSION | {"width": 4})
    with pytest.raises(UserError, match=r"config.model.retrieval 'lightgnc' is unknown; did you mean 'lightgcn'"):
        registry.retrieval("lightgnc", {}, NUM_USERS, NUM_ITEMS)


# Randomness.


@pytest.mark.parametrize("name", ["em3", "em3_as_released", "bm3"])
def test_randomness_follows_the_keys(name):
    """The same keys give the same loss; another key of a stream that is in use gives another."""
    changes = {"dropout": 0.5} if name != "em3" else {"fusion_settings": FUSION | {"dropout": 0.5}, "cic_negatives": 3}
    model, graphs = make(name, **changes), dense.graphs()
    params = dense.random_params(model)

    @jax.jit
    def loss(dropout, negatives):
        rngs = {"dropout": jax.random.key(dropout), "negatives": jax.random.key(negatives)}
        return model.apply({"params": params}, FEATURES, graphs, *BATCH, method="loss", rngs=rngs)[0]

    assert loss(0, 0) == loss(0, 0)
    assert loss(0, 0) != loss(1, 0)
    assert (loss(0, 0) != loss(0, 1)) == (name != "bm3")


def test_bm3_targets_carry_no_gradient():
    """With the online side held at its values, the loss does not depend on the targets' parameters."""
    model, graphs = make("bm3", l2=0.0, content_weight=0.0), dense.graphs()
    p = dense.random_params(model)

    rngs = {"dropout": jax.random.key(0)}
    loss = functools.partial(model.apply, method="loss", rngs=rngs)
    gradient = jax.grad(lambda params: loss({"params": params}, FEATURES, graphs, *BATCH)[0])(p)
    q = dense.f64(p)
    targets = dense.light_gcn(q["user_embedding"], q["item_embedding"], K)
    targets = targets[0][USER], (targets[1] + q["item_embedding"])[POSITIVE]

    def online_alone(items: np.ndarray) -> float:
        users, h = dense.light_gcn(q["user_embedding"], items, K)
        u, i = (naive.dense(x, q["predictor"]) for x in (users[USER], (h + items)[POSITIVE]))
        return -sum(np.mean(np.diagonal(dense.cosines(x, y))) for x, y in ((u, targets[1]), (i, targets[0])))

    direction = np.random.default_rng(7).normal(size=(NUM_ITEMS, D))
    step = 1e-5
    up, down = (online_alone(q["item_embedding"] + sign * step * direction) for sign in (1, -1))
    assert np.vdot(gradient["item_embedding"], direction) == pytest.approx((up - down) / (2 * step), rel=1e-3)


# LATTICE's neighbours.


def test_em3_does_not_see_a_modality_that_an_item_lacks():
    """Whatever is in its place; an item without any takes no part in CIC, and the others are as they were."""
    model, params = make("em3"), evaluated("em3").params
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    everything = dense.graphs()
    lacking = {name: present.copy() for name, present in everything.present.items()}
    lacking["image"][[2, 3]] = lacking["text"][3] = False
    graphs = everything._replace(present=lacking)

    @jax.jit
    def run(features, graphs):
        content = model.apply({"params": params}, features, graphs.present, False, method="content")
        loss = model.apply({"params": params}, features, graphs, *BATCH, method="loss")
        return content, loss

    content, (loss, aux) = run(FEATURES, graphs)
    for rubbish in (0.0, 1e3):
        changed = {name: np.where(lacking[name][:, None], x, rubbish) for name, x in FEATURES.items()}
        again, (other_loss, other_aux) = run(changed, graphs)
        np.testing.assert_array_equal(again, content)
        assert other_loss == loss and other_aux["cic_loss"] == aux["cic_loss"]
    full, (_, full_aux) = run(FEATURES, everything)
    kept = np.isin(np.arange(NUM_ITEMS), [2, 3], invert=True)
    np.testing.assert_allclose(content[kept], full[kept], rtol=1e-5)
    assert (np.abs(content[~kept] - full[~kept]).max(axis=1) > 1e-3).all()
    only_three = {name: np.arange(NUM_ITEMS) != 3 for name in lacking}
    without = run(FEATURES, everything._replace(present=only_three))[1][1]["cic_loss"]
    assert without != full_aux["cic_loss"]  # item 3 is in the batch
