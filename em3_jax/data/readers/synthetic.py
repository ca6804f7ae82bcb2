"""Planted truth: the probability of every click is known, so the best possible AUC is known, too.

The generator is part of what the results mean: it will not be changed to please a model.

**Items.** Item i has unit content z_i, uniform on the sphere of R^k; a quality q_i ~ N(0, QUALITY^2) that content does
not show; and a popularity p_i ~ (rank_i + 10)^-TAIL, the ranks in random order. All three are independent.

    token of modality m       x = W_m (w_m * z_i) + s e,   W_m entries ~ N(0, 1),   e ~ N(0, 1),   s ~ U(0.1, 0.5)
    or, with chance 1/4, a    x = o_m + e,   one offset o_m ~ N(0, 1) for all title cards of the modality
    title card

w_m says how much of each latent dimension the modality shows: the image weights fall linearly from 1 to 0.1 over the k
dimensions, the text weights rise from 0.1 to 1, so that both together show more than either. Tokens differ in noise and a
title card can be recognised, so fusion by attention can beat a mean. A share of the items misses a modality (mask False).
With `content_share` c < 1, what is shown is sqrt(c) z + sqrt(1 - c) y, of a direction y of the item's own that says
nothing of clicks: at 0 content is there and worth nothing.

    category = argmax_c <z_i, a_c> + LOOSE g          tags = the one to three largest of <z_i, b_t> + 2 LOOSE g

with random unit directions a_c, b_t and g ~ N(0, 1): coarse and noisy views of z, as categories are.

**Users.** User u has unit taste t_u, uniform on the sphere; field `group` = argmax_g <t_u, c_g> + LOOSE g; and a
log-normal activity (sigma ACTIVITY).

**Clicks.** Impressions come four a second. The user is drawn by activity, then the item and the click:

    P(i | u) ~ p_i exp(EXPOSURE <t_u, z_i>)       over the items there are at the time
    click    ~ Bernoulli(sigmoid(TASTE <t_u, z_i> + q_i + offset of the slot + BIAS))

with the context field `slot` uniform. Column `probability` holds the true probability. With `interest` nearest, users have
several tastes, and a click depends on the past item that is nearest to the candidate: see `planted_interest`.

**Drift** (`drift` > 0). What tastes are about moves from the first half of the latent dimensions to the second: at the share
s of the log, <t_u, z_i> is replaced by sum_j e_j t_uj z_ij with e_j = sqrt(2) cos(drift s pi / 2) in the first half and
sqrt(2) sin(...) in the second. **Arrivals**: a share of the items appears at times spread evenly over the log.

**Raw content** (`raw`): see `planted_content` for words and `planted_pictures` for pixels.

**Time.** The rows are split 80 / 10 / 10 % in time order. A share of the items is cold: before the test period there
are none of them, neither as candidates nor in histories. A share of the users appears first in the test period likewise.

**Histories.** An event is a click of the log or one of a Poisson number of choices before it (time < 0),

    P(i | u) ~ p_i exp(CHOICE <t_u, z_i>)         over the items that are not cold;

a history holds the user's events strictly earlier than the impression.

With the default sizes 42 % of the rows are clicks, quality makes 17 % of the variance of the logit, and the Bayes AUC is
0.85; it would be 0.82 for one who knows all but q.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from em3_jax.core import npy
from em3_jax.core.errors import UserError
from em3_jax.core.fields import FIRST_KNOWN, Field, Fields
from em3_jax.data.format import LOGGED, SPLITS, Dataset, hash_ids
from em3_jax.data.histories import history_ranges, sort_events
from em3_jax.data.readers import planted_content, planted_interest, planted_labels, planted_pictures, planted_split
from em3_jax.data.readers.planted_world import (
    World,
    affinity_of,
    directions,
    draw_by_taste,
    make_world,
    nearest_to,
    random_of,
)
from em3_jax.data.readers.splits import held_out, of_whole
from em3_jax.data.writer import DatasetWriter
from em3_jax.metrics import auc

TASTE, BIAS = 4.0, -0.9
LOOSE = 1.0
LEAST_SHOWN = 0.1
SLOTS = {"top": 0.3, "middle": 0.0, "bottom": -0.3}
CATEGORIES = [f"category {c}" for c in range(12)]
TAGS = [f"tag {t}" for t in range(24)]
TAGS_PER_ITEM = 3
GROUPS = [f"group {g}" for g in range(8)]
VOCABULARIES: dict[str, dict[str, list]] = {
    "user": {"group": GROUPS},
    "item": {"category": CATEGORIES, "tags": TAGS},
    "context": {"slot": list(SLOTS)},
    "event": {},
}
PER_SECOND = 4
BY_TIME = "by time: the first 80 % of the rows train, the next 10 % valid, the last 10 % test"
_CHUNK = 1 << 15  # fits the caches; each chunk draws from a generator of its own, so another size is another dataset


def synthetic(
    out: str | Path,
    *,
    interactions: int = 40_000,
    users: int = 800,
    items: int = 1_000,
    seed: int = 0,
    latent: int = 6,
    image_tokens: int = 4,
    text_tokens: int = 2,
    token_width: int = 32,
    cold_share: float = 0.15,
    new_users: float = 0.1,
    missing_image: float = 0.1,
    missing_text: float = 0.1,
    choices: float = 40.0,
    drift: float = 0.0,
    arrivals: float = 0.0,
    raw: bool = False,
    pictures: str = "plain",
    picture_side: int = 0,
    interest: str = "taste",
    content_share: float = 1.0,
    labels: bool = False,
    amounts: bool = False,
    split: str = "",
    overwrite: bool = False,
) -> Dataset:
    """The dataset in folder `out`, a function of the arguments alone.

    Args:
      interactions, users, items: how many.
      seed: of everything drawn.
      latent: k, dimensions of content and taste.
      image_tokens, text_tokens, token_width: tokens of an item and their width; 0 tokens leaves a modality out.
      cold_share: share of the items that first appear in the test period.
      new_users: share of the users that first appear in the test period.
      missing_image, missing_text: share of the items without the modality.
      choices: mean number of events of a user before the log starts; a tenth of it for new users.
      drift: how far tastes move during the log, from 0 to 1.
      arrivals: share of the items that appear during the log.
      raw: also write feature sets raw_text and raw_image, word ids and pixels.
      pictures: what pixels show: plain, the content all over; or category, small motifs in places
        that vary, beside clutter, and which of the motifs are true the item's category says.
      picture_side: of raw pictures, in pixels; 0 = 16 of plain ones, 32 of those by category.
      interest: what clicks depend on: taste, or nearest, the past item most like the candidate.
      content_share: how much of what content shows is about clicks, from 0 to 1.
      labels, amounts: further labels: buy, of clicks alone, and like, of some rows; dwell, a click's seconds.
      split: in place of that in time: "items:0.7,0.1,0.2", "users:0.8,0.1,0.1" or "folds:5:0", by a hash
        of the seed and the ids, see `em3 prepare table --help`; the log stays as it is.
      overwrite: replace an existing dataset.
    """
    arguments = {k: v for k, v in locals().items() if k not in ("out", "overwrite")}
    # These keep a dataset's hash where they are not used.
    later = {"drift": 0.0, "arrivals": 0.0, "interest": "taste", "pictures": "plain", "picture_side": 0}
    later |= {"content_share": 1.0, "split": ""} | dict.fromkeys(("raw", "labels", "amounts"), False)
    arguments = {name: value for name, value in arguments.items() if later.get(name, ()) != value}
    _check_arguments(arguments)
    rule = held_out(split, "planted data", "no --split")
    side = planted_pictures.side_of(pictures, picture_side, latent)
    if not raw and (pictures != "plain" or picture_side):
        raise UserError("--pictures and --picture-side are of raw pictures; add --raw")
    with DatasetWriter(out, overwrite) as writer:
        world = make_world(seed, users, items, latent, cold_share, new_users, interest)
        world = _with_arrivals(world, seed, arrivals, interactions)
        events = _write_rows(writer, world, seed, interactions, choices, drift, labels, amounts)
        if rule is not None:
            events = planted_split.hold_out(writer, rule, seed, events, {"user": users, "item": items})
        _write_histories(writer, *events)
        is_cold = world.cold | (rule is not None and rule.kind == "item")
        item_table, item_fields = _item_table(random_of(seed, "items"), world)
        user_table, user_fields = _user_table(random_of(seed, "users"), world)
        item_hash = hash_ids(item_table.column("id"))
        shown = np.linspace(1, LEAST_SHOWN, latent)
        visible = _visible(seed, world.content, content_share)
        for name, count, missing, weight in (
            ("image", image_tokens, missing_image, shown),
            ("text", text_tokens, missing_text, shown[::-1]),
        ):
            if count:
                sizes, random = (count, token_width, missing), random_of(seed, name)
                sets = planted_content.tokens(random, visible * weight, *sizes)
                manifest = {"encoder": "planted", "arguments": arguments}
                writer.features(name, *sets, manifest, item_hash)
        if raw:
            category = item_table.column("category").to_numpy() - FIRST_KNOWN
            of_raw = _raw_sets(seed, visible, shown, category, pictures, side)
            for name, (tokens, mask, described) in of_raw:
                writer.features(name, tokens, mask, described, item_hash)
        return writer.finish(
            name="synthetic",
            users=user_table,
            items=item_table,
            fields=Fields(user_fields, item_fields, context=(_field("slot", SLOTS),)),
            vocabularies=VOCABULARIES,
            text_columns=[],
            provenance="planted truth, generated by em3_jax/data/readers/synthetic.py",
            label_rule="click ~ Bernoulli(probability)",
            split_rule=rule.told() if rule else BY_TIME,
            source_hash=hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest(),
            time_unit="seconds",
            extra={"arguments": arguments, "negatives": LOGGED, "bayes_auc": _bayes_auc(writer.path, is_cold)}
            | {**of_whole(rule), **planted_labels.described(labels, amounts)},
        )


def _visible(seed: int, content: np.ndarray, share: float) -> np.ndarray:
    """[I, k] what content shows of the items' own [I, k]."""
    if share == 1:
        return content
    unrelated = directions(random_of(seed, "unrelated"), *content.shape)
    return np.sqrt(share) * content + np.sqrt(1 - share) * unrelated


def _with_arrivals(world: World, seed: int, share: float, rows: int) -> World:
    """The world in which a share of the items appears at some row of the log; cold ones come later than that."""
    items = len(world.content)
    late = random_of(seed, "arrivals").permutation(items) / items
    arrival = np.where(late < share, late / max(share, 1e-9) * rows, 0).astype(np.int64)
    return dataclasses.replace(world, arrival=np.where(world.cold, 0, arrival))


def _raw_sets(
    seed: int, content: np.ndarray, shown: np.ndarray, category: np.ndarray, kind: str, side: int
) -> Iterator[tuple[str, tuple]]:
    """(name, what `DatasetWriter.features` takes of it) of word ids and of pixels.

    Args:
      content: [I, k] of the items.
      shown: [k] weights of the latent dimensions in pictures; texts have them in reverse.
      category: [I] number of each item's category.
      kind, side: of the pictures.
    """
    yield "raw_text", planted_content.words(random_of(seed, "words"), content * shown[::-1])
    random, seen = random_of(seed, "pictures"), content * shown
    if kind == "plain":
        yield "raw_image", planted_pictures.plain(random, seen, side)
    else:
        of_each = planted_pictures.by_category(random, seen, category, len(CATEGORIES), side)
        yield "raw_image", of_each


def _check_arguments(arguments: dict) -> None:
    least = {"interactions": 100, "users": 10, "items": 10, "latent": 2, "token_width": 1}
    for name, value in arguments.items():
        option = "--" + name.replace("_", "-")
        if name in ("cold_share", "new_users", "missing_image", "missing_text"):
            if not 0 <= value < 1:
                raise UserError(f"{option} is {value}; give a share in [0, 1)")
        elif name in ("drift", "arrivals", "content_share"):
            if not 0 <= value <= 1:
                raise UserError(f"{option} is {value}; give a number from 0 to 1")
        elif name in ("pictures", "split"):
            continue  # see `planted_pictures` and `splits`
        elif name in ("labels", "amounts"):
            if arguments.get("drift") or "interest" in arguments:
                raise UserError(f"{option} are of one taste that stays; leave out --drift and --interest")
        elif name == "interest":
            if value not in planted_interest.INTERESTS:
                raise UserError(f"{option} '{value}' is unknown; give taste or nearest")
            if arguments.get("drift"):
                raise UserError(f"{option} {value} has no tastes that drift; leave out --drift")
        elif value < least.get(name, 0):
            raise UserError(f"{option} is {value}; give at least {least.get(name, 0)}")


def _write_rows(
    writer: DatasetWriter, world: World, seed: int, rows: int, choices: float, drift: float, *further: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Writes the interaction columns but the histories; returns the events: user i32, item i32, time i64, each [E]."""
    dtypes = {
        "user": np.int32, "item": np.int32, "label": np.uint8, "time": np.int64, "split": np.uint8,
        "context_slot": np.int32, "probability": np.float32,
    }  # fmt: skip
    columns = {name: writer.column(f"interactions/{name}", rows, dtype) for name, dtype in dtypes.items()}
    valid_start, test_start = round(0.8 * rows), round(0.9 * rows)
    columns["time"][:] = np.arange(rows) // PER_SECOND
    columns["split"][:] = np.repeat([0, 1, 2], [valid_start, test_start - valid_start, rows - test_start])
    events, parts = [_choices(world, seed, choices, rows // PER_SECOND, drift > 0)], []
    starts = sorted({*range(0, rows, _CHUNK), test_start})  # no chunk runs across the start of the test period
    for chunk, (start, end) in enumerate(
        zip(tqdm(starts, desc="interactions", unit="chunk", disable=None), [*starts[1:], rows], strict=True)
    ):
        numbers = np.arange(start, end)
        share = drift * numbers / rows if drift else None
        values = _impressions(random_of(seed, "rows", chunk), world, numbers, share, test_period=start >= test_start)
        if world.interest.tastes > 1:
            parts.append((values.pop("offset"), values.pop("draw")))
        for name, value in values.items():
            columns[name][start:end] = value
    if world.interest.tastes > 1:
        offset, draw = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        probability, label = planted_interest.nearest_clicks(world.content, columns, events[0], offset, draw)
        columns["probability"][:], columns["label"][:] = probability, label
    planted_labels.write(writer, world, seed, *further)
    click = np.flatnonzero(columns["label"])
    events.append((columns["user"][click], columns["item"][click], columns["time"][click]))
    user, item, time = (np.concatenate(arrays) for arrays in zip(*events, strict=True))
    return user, item, time


def _impressions(
    random: np.random.Generator, world: World, rows: np.ndarray, share: np.ndarray | None, test_period: bool
) -> dict[str, np.ndarray]:
    """The drawn columns of impressions, each [rows], and of clicks yet to be made "offset" and "draw"; `label` as bool.

    Args:
      rows: their numbers.
      share: of the way of the drift at each; None without drift.
    """
    user_deck, item_deck = world.user_deck, world.item_deck
    if not test_period:
        user_deck, item_deck = user_deck[~world.new[user_deck]], item_deck[~world.cold[item_deck]]
    user = user_deck[random.integers(len(user_deck), size=len(rows))]
    taste, kind = world.taste_of(random, user), world.interest
    item = draw_by_taste(random, world, taste, item_deck, kind.exposure, rows, share)
    slot = random.integers(len(SLOTS), size=len(rows), dtype=np.int32)
    offset = np.array(list(SLOTS.values()), np.float32)[slot]
    values = {"user": user, "item": item, "context_slot": slot + FIRST_KNOWN}
    draw = random.random(len(rows), dtype=np.float32)
    if kind.tastes > 1:  # the click depends on earlier clicks
        return values | {"offset": world.quality[item] + offset, "draw": draw}
    affinity = affinity_of(world, taste, item, share)
    probability = 1 / (1 + np.exp(-(TASTE * affinity + world.quality[item] + offset + BIAS)))
    return values | {"label": draw < probability, "probability": probability}


def _choices(
    world: World, seed: int, mean: float, span: int, drifts: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The events before the log: user i32, item i32, time i64 in [-span, -1], each [E]."""
    random = random_of(seed, "choices")
    number = random.poisson(np.where(world.new, mean / 10, mean))
    user = np.repeat(np.arange(len(number), dtype=np.int32), number)
    warm = world.item_deck[~world.cold[world.item_deck]]
    item, share = np.empty(len(user), np.int32), np.zeros(len(user))
    for start in tqdm(range(0, len(user), _CHUNK), desc="earlier choices", unit="chunk", disable=None):
        part = slice(start, start + _CHUNK)
        taste = world.taste_of(random, user[part])
        item[part] = draw_by_taste(
            random, world, taste, warm, world.interest.choice, share=share[part] if drifts else None
        )
    return user, item, random.integers(-max(span, 1), 0, len(user))


def _write_histories(writer: DatasetWriter, user: np.ndarray, item: np.ndarray, time: np.ndarray) -> None:
    """Writes the events [E] in history order, and the range of each row."""
    order = sort_events(user, time)
    user, time = user[order], time[order]
    writer.columns("events", {"item": item[order], "time": time})
    rows = {n: npy.load(writer.path / "interactions" / f"{n}.npy", mmap_mode="r") for n in ("user", "time")}
    start, end = (writer.column(f"interactions/history_{n}", len(rows["user"]), np.int64) for n in ("start", "end"))
    for first in tqdm(range(0, len(start), 1 << 20), desc="histories", unit="chunk", disable=None):
        part = slice(first, first + (1 << 20))
        start[part], end[part] = history_ranges(user, time, rows["user"][part], rows["time"][part])


def _field(name: str, values, length: int = 1) -> Field:
    return Field(name, len(values) + FIRST_KNOWN, length)


def _item_table(random: np.random.Generator, world: World) -> tuple[pa.Table, tuple[Field, ...]]:
    items, latent = len(world.content), world.content.shape[1]
    category = nearest_to(random, world.content, directions(random, len(CATEGORIES), latent), LOOSE, 1)
    tags = nearest_to(random, world.content, directions(random, len(TAGS), latent), 2 * LOOSE, TAGS_PER_ITEM)
    number = random.integers(1, TAGS_PER_ITEM + 1, items)
    tags[np.arange(TAGS_PER_ITEM) >= number[:, None]] = 0
    table = pa.table(
        {
            "id": pa.array(range(items), pa.int64()),
            "category": category[:, 0],
            "tags": pa.FixedSizeListArray.from_arrays(tags.ravel(), TAGS_PER_ITEM),
        }
    )
    fields = Field("item", items + FIRST_KNOWN), _field("category", CATEGORIES), _field("tags", TAGS, TAGS_PER_ITEM)
    return table, fields


def _user_table(random: np.random.Generator, world: World) -> tuple[pa.Table, tuple[Field, ...]]:
    first = world.taste[:: world.interest.tastes]
    users, latent = first.shape
    group = nearest_to(random, first, directions(random, len(GROUPS), latent), LOOSE, 1)
    table = pa.table({"id": pa.array(range(users), pa.int64()), "group": group[:, 0]})
    return table, (Field("user", users + FIRST_KNOWN), _field("group", GROUPS))


def _bayes_auc(root: Path, is_cold: np.ndarray) -> dict[str, float]:
    """AUC of the true probability on each split's labels: what no model can beat but by luck.

    Args:
      is_cold: [I] bool, of the items that the test split may show: those that training does not.
    """
    names = ("label", "probability", "split", "item")
    column = {n: npy.load(root / "interactions" / f"{n}.npy", "r") for n in names}
    result = {}
    for code, name in enumerate(SPLITS):
        rows = np.flatnonzero(column["split"] == code)
        result[name] = auc(column["label"][rows], column["probability"][rows])
    cold = rows[is_cold[column["item"][rows]]]
    result["test, cold items"] = auc(column["label"][cold], column["probability"][cold])
    return {name: round(value, 4) for name, value in result.items()}
