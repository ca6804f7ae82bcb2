"""The planted data is what its docstring says."""

import numpy as np
import pytest

from em3_jax.core.errors import UserError
from em3_jax.data.format import Dataset
from em3_jax.data.readers.planted_interest import MIDDLE, SHARPNESS, SLOPE, WINDOW, true_weights
from em3_jax.data.readers.planted_world import World, make_world
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.metrics import auc

ARGUMENTS = {"interactions": 12_000, "users": 300, "items": 400}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return synthetic(tmp_path_factory.mktemp("data") / "planted", **ARGUMENTS, seed=5)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(5, ARGUMENTS["users"], ARGUMENTS["items"], 6, 0.15, 0.1)


def test_it_is_a_function_of_its_arguments(dataset, tmp_path):
    again = synthetic(tmp_path / "again", **ARGUMENTS, seed=5)
    other = synthetic(tmp_path / "other", **ARGUMENTS, seed=6)
    assert again.meta["data_hash"] == dataset.meta["data_hash"] != other.meta["data_hash"]
    for name in ("image", "text"):
        np.testing.assert_array_equal(again.features(name).tokens, dataset.features(name).tokens)
        assert (other.features(name).tokens != dataset.features(name).tokens).any()


def test_parts_keep_their_random_numbers_when_others_change_size(dataset, tmp_path):
    changed = synthetic(tmp_path / "changed", **ARGUMENTS, seed=5, image_tokens=1, token_width=8)
    assert changed.meta["data_hash"] == dataset.meta["data_hash"]


def test_clicks_follow_the_written_equation(dataset, world):
    column = dataset.interactions
    affinity = (world.taste[column["user"]] * world.content[column["item"]]).sum(axis=1)
    offset = np.array([0, 0, 0.3, 0.0, -0.3])[column["context_slot"]]
    logit = 4.0 * affinity + world.quality[column["item"]] + offset - 0.9
    np.testing.assert_allclose(column["probability"], 1 / (1 + np.exp(-logit)), atol=1e-5)
    error = np.sqrt((column["probability"] * (1 - column["probability"])).sum()) / len(logit)
    assert abs(column["label"].mean() - column["probability"].mean()) < 3 * error
    assert 0.1 < np.var(world.quality[column["item"]]) / np.var(logit) < 0.25
    assert 0.3 < column["label"].mean() < 0.5


def test_the_bayes_auc_is_that_of_the_true_probability(dataset):
    """From probabilities alone: each row is a positive of weight p and a negative of weight 1 - p."""
    for name in ("train", "valid", "test"):
        rows = np.arange(len(dataset.interactions["user"]))[list(dataset.split_rows(name))]
        p = dataset.interactions["probability"][rows].astype(np.float64)
        expected = auc(np.repeat([1, 0], len(p)), np.tile(p, 2), np.concatenate([p, 1 - p]))
        assert abs(dataset.meta["bayes_auc"][name] - expected) < 1.5 / np.sqrt(len(p))
        assert 0.78 < expected < 0.87


def test_cold_items_and_new_users_appear_in_the_test_period_only(dataset, world):
    column, before = dataset.interactions, slice(0, 10_800)
    assert world.cold.mean() == 0.15 and world.new.mean() == 0.1
    assert not world.cold[column["item"][before]].any() and not world.new[column["user"][before]].any()
    # A cold item is an event only by a click of the test period.
    cold_event = world.cold[dataset.events["item"]]
    assert cold_event.any() and dataset.events["time"][cold_event].min() >= column["time"][10_800]
    for row in range(0, 10_800, 97):
        assert not cold_event[column["history_start"][row] : column["history_end"][row]].any()
    summary = dataset.meta["summary"]["splits"]["test"]
    assert 0.08 < summary["rows_with_cold_item"] < 0.25 and 0.04 < summary["rows_with_new_user"] < 0.2


def test_popularity_has_a_long_tail(dataset):
    count = np.sort(dataset.counts["item"][dataset.counts["item"] > 0])[::-1]
    head = len(count) // 10
    assert count[:head].sum() > 0.25 * count.sum() and np.median(count) < 0.8 * count.mean()


@pytest.mark.parametrize("interest", ["dataset", "nearest"])
def test_histories_are_strictly_earlier_clicks_and_choices(interest, request):
    dataset = request.getfixturevalue(interest)
    column, events = dataset.interactions, dataset.events
    clicks = {}
    for user, item, time, label in zip(*(column[n].tolist() for n in ("user", "item", "time", "label")), strict=True):
        if label:
            clicks.setdefault(user, []).append((time, item))
    for row in range(7, len(column["user"]), 211):
        part = slice(column["history_start"][row], column["history_end"][row])
        log = [(t, i) for t, i in zip(events["time"][part], events["item"][part], strict=True) if t >= 0]
        assert log == [c for c in clicks.get(column["user"][row], []) if c[0] < column["time"][row]]
        assert (np.diff(events["time"][part]) >= 0).all()


def test_histories_and_exposure_follow_taste(dataset, world):
    column = dataset.interactions
    shown = (world.taste[column["user"]] * world.content[column["item"]]).sum(axis=1).mean()
    earlier = []
    for user in range(0, len(world.taste), 10):
        rows = np.flatnonzero(column["user"] == user)
        part = slice(column["history_start"][rows[-1]], column["history_end"][rows[-1]])
        chosen = dataset.events["item"][part][dataset.events["time"][part] < 0]
        earlier.append((world.content[chosen] @ world.taste[user]).mean())
    assert np.mean(earlier) > 0.4 > 0.2 > shown > 0.03


def explained(tokens: np.ndarray, content: np.ndarray) -> np.ndarray:
    """[k]: share of each latent dimension's variance that a ridge regression on the mean token explains, out of sample."""
    x = np.concatenate([tokens.astype(np.float64), np.ones((len(tokens), 1))], axis=1)
    half = len(x) // 2
    weights = np.linalg.solve(x[:half].T @ x[:half] + np.eye(x.shape[1]), x[:half].T @ content[:half])
    return 1 - ((x[half:] @ weights - content[half:]) ** 2).mean(axis=0) / content[half:].var(axis=0)


def test_each_modality_shows_its_part_of_the_content(dataset, world):
    image, text = (dataset.features(name).tokens.astype(np.float64).mean(axis=1) for name in ("image", "text"))
    from_image, from_text = explained(image, world.content), explained(text, world.content)
    both = explained(np.concatenate([image, text], axis=1), world.content)
    assert from_image[0] > from_image[-1] + 0.1 and from_text[-1] > from_text[0] + 0.1
    assert both.mean() > max(from_image.mean(), from_text.mean()) + 0.05
    assert 0.6 < both.mean() < 0.95


def test_items_without_a_modality(dataset):
    for name, count in (("image", 4), ("text", 2)):
        features = dataset.features(name)
        assert features.tokens.shape == (400, count, 32) and features.tokens.dtype == np.float16
        missing = ~features.mask.any(axis=1)
        assert 0.05 < missing.mean() < 0.16 and (features.tokens[missing] == 0).all()
        assert features.mask[~missing].all()


def test_fields_are_coarse_views(dataset, world):
    tags = dataset.item_field_ids[:, 2:]
    assert set((tags > 0).sum(axis=1)) == {1, 2, 3}
    category = dataset.item_field_ids[:, 1]
    means = np.stack([world.content[category == c].mean(axis=0) for c in np.unique(category)])
    assert 0.15 < np.linalg.norm(means, axis=1).mean() < 0.7


def test_a_modality_may_be_left_out(tmp_path):
    dataset = synthetic(tmp_path / "text", interactions=500, users=20, items=30, image_tokens=0)
    assert [path.name for path in (dataset.root / "features").iterdir()] == ["text"]


@pytest.fixture(scope="module")
def nearest(tmp_path_factory) -> Dataset:
    """Users with so few and so many choices that histories are empty, shorter and longer than what counts."""
    out = tmp_path_factory.mktemp("data") / "nearest"
    return synthetic(out, **ARGUMENTS, seed=5, choices=25, interest="nearest")


def test_clicks_on_the_nearest_follow_the_written_equation(nearest):
    """From the dataset alone: each row's history, the world's latent vectors, and the true weights."""
    arguments = nearest.meta["arguments"]
    names = ("seed", "users", "items", "latent", "cold_share", "new_users", "interest")
    world = make_world(*(arguments[name] for name in names))
    column, offsets = nearest.interactions, np.array([0, 0, 0.3, 0.0, -0.3])
    lengths = column["history_end"] - column["history_start"]
    assert (lengths == 0).any() and (lengths > WINDOW).any()
    interest, mean = np.zeros(len(lengths)), np.zeros(len(lengths))
    for row, (start, end) in enumerate(zip(column["history_start"], column["history_end"], strict=True)):
        past = world.content[nearest.events["item"][start:end][-WINDOW:]]
        cosine = (past @ world.content[column["item"][row]])[None]
        weight = true_weights(cosine, np.ones(cosine.shape, bool))
        interest[row] = (weight * cosine).sum() if len(past) else MIDDLE
        mean[row] = cosine.mean() if len(past) else 0.0
    logit = SLOPE * (interest - MIDDLE) + world.quality[column["item"]] + offsets[column["context_slot"]]
    np.testing.assert_allclose(column["probability"], 1 / (1 + np.exp(-logit)), atol=1e-5)
    error = np.sqrt((column["probability"] * (1 - column["probability"])).sum()) / len(logit)
    assert abs(column["label"].mean() - column["probability"].mean()) < 3 * error
    true, uniform = (auc(column["label"], score) for score in (interest, mean))
    assert true > uniform + 0.08 and nearest.meta["bayes_auc"]["test"] > uniform + 0.12


def test_true_weights_are_a_softmax_and_zero_where_there_is_nothing():
    cosine = np.array([[0.5, 0.6, 0.9], [1.0, -1.0, 0.3]])
    weight = true_weights(cosine, np.array([[True, True, False], [False, False, False]]))
    share = 1 / (1 + np.exp(-0.1 * SHARPNESS))
    np.testing.assert_allclose(weight, [[1 - share, share, 0], [0, 0, 0]], rtol=1e-12)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"interest": "far"}, "--interest 'far' is unknown; give taste or nearest"),
        ({"interest": "nearest", "drift": 0.5}, "--interest nearest has no tastes that drift"),
        ({"interactions": 5}, "--interactions is 5; give at least 100"),
        ({"seed": -1}, "--seed is -1"),
        ({"cold_share": 1.0}, r"--cold-share is 1.0; give a share in \[0, 1\)"),
        ({"missing_text": -0.1}, "--missing-text is -0.1"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        synthetic(tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())
