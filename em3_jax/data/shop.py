"""A planted shop's log, as files to prepare: three labels and an amount, five numbers, two histories, sessions, a weight.

em3 shop --out shop
em3 prepare table --mapping shop/shop.toml --out data/shop
python train.py --config=configs/shop.py --workdir=runs/shop

What a row of a shop's log brings besides a click, with its truth known. Items i have content z_i, quality q_i and a
popularity, and users u a taste t_u, as those of `em3 prepare synthetic` have; a second taste s_u = 0.6 t_u + 0.8 t'_u, with
t'_u orthogonal to t_u, says what a user buys. Impressions come in sessions of eight rows of one user, four rows a second.

    log price_i ~ N(0, 0.8^2)       rating_i ~ N(3.5, 0.7^2) within 1 to 5, but a fifth of the items has none
    age_u ~ U(18, 80)               budget_u = (age_u - 49) / 31          hour of a session ~ U(0, 24)

    click    ~ Bernoulli(sigmoid(4 <t_u, z_i> + q_i - 0.3 - 0.6 (log price_i - budget_u)^2
                                 + 0.6 (rating_i - 3.5) + 0.5 cos(2 pi (hour - 20) / 24)))
    of clicks alone:
    buy      ~ Bernoulli(sigmoid(3 <s_u, z_i> + v_i - 0.7 - 0.8 log price_i)),    v_i ~ N(0, 0.5^2)
    seconds  = exp(3 + 2 <t_u, z_i> + 0.8 e) within 1 to 3600,                    e ~ N(0, 1)

A fifth of the items appears during the log, spread evenly, so that what valid and test show is alike. With
`keep_negatives` r < 1 the log holds that share of the rows without a click, drawn, but for its last tenth, which is whole;
`weight` says of how many rows a row stands.

Files: interactions, items and users as Parquet; image.npy and text.npy, content tokens of the items; shop.toml, the
mapping; truth.parquet, the probabilities of each row; truth.json, the best AUC of a label that is possible on the last tenth.
"""

import argparse
import dataclasses
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from em3_jax import cli
from em3_jax.core import terminal
from em3_jax.core.errors import UserError
from em3_jax.core.publish import building_place, resolved
from em3_jax.data.readers import planted_content
from em3_jax.data.readers.planted_world import World, affinity_of, directions, draw_by_taste, make_world, random_of
from em3_jax.data.readers.synthetic import LEAST_SHOWN
from em3_jax.metrics import auc

LATENT, TOKENS, TOKEN_WIDTH = 6, {"image": 4, "text": 2}, 32
SESSION, PER_SECOND, START = 8, 4, 1_700_000_000  # rows; rows; seconds since 1970
ARRIVALS, UNRATED, EXPOSURE, MISSING = 0.2, 0.2, 0.5, 0.1
LONG = 30  # seconds
_CHUNK = 1 << 17  # whole sessions; each chunk draws from a generator of its own, so another size is another log

MAPPING = """\
# em3 prepare table --mapping {folder}/shop.toml --out data/shop
interactions = "{folder}/interactions.parquet"
items = "{folder}/items.parquet"
users = "{folder}/users.parquet"
columns = {{ label = "click", group = "session", weight = "weight" }}
labels = {{ buy = "buy", long = "seconds>={long}" }}
amounts = {{ dwell = "seconds" }}
item_fields = ["category"]
item_numbers = ["price", "rating"]
user_numbers = ["age"]
context_numbers = ["hour"]
event_fields = ["action"]
event_numbers = ["seconds"]
features = {{ image = "{folder}/image.npy", text = "{folder}/text.npy" }}
split = "{split}"
"""


@dataclasses.dataclass(frozen=True)
class Shop:
    """What rows are drawn of; letters: I items, U users, k latent dimensions.

    Attributes:
      world: content, tastes and popularity.
      buying: [U, k] f32, unit length, the second taste; value: [I] f32, what of a purchase is an item's own.
      log_price, rating: [I] f32, a rating NaN where there is none.
      age: [U] f32, years.
    """

    world: World
    buying: np.ndarray
    value: np.ndarray
    log_price: np.ndarray
    rating: np.ndarray
    age: np.ndarray


def shop(
    out: str | Path,
    *,
    interactions: int = 200_000,
    users: int = 2_000,
    items: int = 2_000,
    keep_negatives: float = 1.0,
    seed: int = 0,
) -> dict[str, float]:
    """Writes the log into a folder, a function of the arguments alone; returns label -> best possible AUC of its last tenth.

    Args:
      out: the folder to make.
      interactions: impressions of the whole log.
      users, items: how many.
      keep_negatives: share of the rows without a click that the log holds, but for its last tenth.
      seed: of everything drawn.

    Raises:
      UserError: the folder is there already, or cannot be written; a number is out of range.
    """
    for name, value, least in (("interactions", interactions, 100), ("users", users, 10), ("items", items, 10)):
        if not least <= value < 1 << 31:
            raise UserError(f"--{name} {value}: give {least} to {(1 << 31) - 1}")
    if not 0 < keep_negatives <= 1:
        raise UserError(f"--keep-negatives {keep_negatives}: give a share above 0, to 1")
    if not 0 <= seed < 1 << 32:
        raise UserError(f"--seed {seed}: give 0 to {(1 << 32) - 1}")
    final = resolved(out)
    if final.exists():
        raise UserError(f"--out {out}: exists already; choose another, or delete it")
    built = building_place(final)
    try:
        shutil.rmtree(built, ignore_errors=True)
        built.mkdir(parents=True)
        best = _write(built, final, _made(seed, users, items, interactions), seed, interactions, keep_negatives)
        built.rename(final)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error}); choose another") from None
    finally:
        shutil.rmtree(built, ignore_errors=True)
    return best


def _made(seed: int, users: int, items: int, rows: int) -> Shop:
    world = make_world(seed, users, items, LATENT, cold_share=0.0, new_users=0.0)
    random = random_of(seed, "shop")
    late = random.permutation(items) / items
    arrival = np.where(late < ARRIVALS, late / ARRIVALS * rows, 0).astype(np.int64)
    other = directions(random, users, LATENT)
    other -= np.sum(other * world.taste, axis=1, keepdims=True) * world.taste
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    rating = np.clip(3.5 + 0.7 * random.standard_normal(items), 1, 5).round(1)
    return Shop(
        world=dataclasses.replace(world, arrival=arrival),
        buying=0.6 * world.taste + 0.8 * other,
        value=(0.5 * random.standard_normal(items)).astype(np.float32),
        log_price=(0.8 * random.standard_normal(items)).astype(np.float32),
        rating=np.where(random.random(items) < UNRATED, np.nan, rating).astype(np.float32),
        age=random.uniform(18, 80, users).round(1).astype(np.float32),
    )


def _write(folder: Path, final: Path, made: Shop, seed: int, rows: int, keep: float) -> dict[str, float]:
    """Writes all files into `folder`, which will be `final`; returns what `shop` does."""
    _write_items(folder, made, seed)
    pq.write_table(pa.table({"user": np.arange(len(made.age)), "age": made.age}), folder / "users.parquet")
    test, last, kept = rows - rows // 10, [], np.zeros(3, np.int64)
    log = truth = None
    try:
        for table, probabilities, place in _rows(made, seed, rows, keep):
            kept += np.bincount(np.searchsorted([rows - rows // 5, test], place, side="right"), minlength=3)
            of_test = place >= test
            last.append([np.asarray(table[n])[of_test] for n in ("click", "buy")] + [p[of_test] for p in probabilities])
            of_rows = pa.table(dict(zip(("p_click", "p_buy"), probabilities, strict=True)))
            log = log or pq.ParquetWriter(folder / "interactions.parquet", table.schema)
            truth = truth or pq.ParquetWriter(folder / "truth.parquet", of_rows.schema)
            log.write_table(table)
            truth.write_table(of_rows)
    finally:
        for writer in filter(None, (log, truth)):
            writer.close()
    click, buy, p_click, p_buy = (np.concatenate(columns) for columns in zip(*last, strict=True))
    clicked = click == 1
    best = {"click": auc(click, p_click), "buy": auc(buy[clicked].astype(int), p_buy[clicked])}
    shares = ",".join(str(float(share)) for share in kept / kept.sum())
    written = json.dumps(final.as_posix(), ensure_ascii=False)[1:-1]  # a text of TOML is one of JSON
    mapping = MAPPING.format(folder=written, long=LONG, split=shares)
    (folder / "shop.toml").write_text(mapping, encoding="utf-8")
    facts = {"best_auc": best, "kept_negatives": keep, "seed": seed, "impressions": rows}
    (folder / "truth.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return best


def _write_items(folder: Path, made: Shop, seed: int) -> None:
    content = made.world.content
    category = np.argmax(content @ directions(random_of(seed, "items"), 12, LATENT).T, axis=1)
    table = {
        "item": np.arange(len(content)),
        "category": pa.array([f"category {one}" for one in category]),
        "price": np.exp(made.log_price).round(2),
        "rating": pa.array(made.rating, from_pandas=True),
    }
    pq.write_table(pa.table(table), folder / "items.parquet")
    shown = np.linspace(1, LEAST_SHOWN, LATENT)
    for (name, count), weight in zip(TOKENS.items(), (shown, shown[::-1]), strict=True):
        tokens, _ = planted_content.tokens(random_of(seed, name), content * weight, count, TOKEN_WIDTH, MISSING)
        np.save(folder / f"{name}.npy", tokens)


def _rows(made: Shop, seed: int, rows: int, keep: float) -> Iterator[tuple[pa.Table, tuple, np.ndarray]]:
    """(rows, their probabilities of a click and of a purchase that follows, their numbers in the whole log) a chunk."""
    starts = range(0, rows, _CHUNK)
    for chunk, start in enumerate(tqdm(starts, desc="interactions", unit="chunk", disable=None)):
        place = np.arange(start, min(start + _CHUNK, rows))
        random = random_of(seed, "shop", 1 + chunk)
        sessions = -(-len(place) // SESSION)
        user = np.repeat(random.choice(made.world.user_deck, sessions), SESSION)[: len(place)]
        hour = np.repeat(random.uniform(0, 24, sessions).round(2), SESSION)[: len(place)].astype(np.float32)
        item = draw_by_taste(random, made.world, user, made.world.item_deck, EXPOSURE, place)
        p_click, p_buy, seconds = _truths(made, random, user, item, hour)
        click = random.random(len(place)) < p_click
        buy = random.random(len(place)) < p_buy
        kept = click | (random.random(len(place)) < keep) | (place >= rows - rows // 10)
        of_log = place < rows - rows // 10
        columns = {
            "user": user,
            "item": item,
            "time": START + place // PER_SECOND,
            "session": place // SESSION,
            "hour": hour,
            "click": click.astype(np.int8),
            "buy": pa.array(buy.astype(np.int8), mask=~click),
            "seconds": pa.array(seconds, mask=~click),
            "action": pa.array(np.where(buy, "buy", "view"), mask=~click),
            "weight": np.where(of_log & ~click, 1 / keep, 1).astype(np.float32),
        }
        yield pa.table(columns).filter(pa.array(kept)), (p_click[kept], p_buy[kept]), place[kept]


def _truths(
    made: Shop, random: np.random.Generator, user: np.ndarray, item: np.ndarray, hour: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """([n] f32 of a click, [n] f32 of a purchase after one, [n] f32 seconds after one) of impressions [n]."""
    taste, log_price = affinity_of(made.world, user, item), made.log_price[item]
    budget = (made.age[user] - 49) / 31
    rated = np.nan_to_num(made.rating[item] - np.float32(3.5))
    evening = np.cos(2 * np.pi * (hour - 20) / 24)
    click = 4 * taste + made.world.quality[item] - 0.3 - 0.6 * (log_price - budget) ** 2 + 0.6 * rated + 0.5 * evening
    buying = np.einsum("nk,nk->n", made.buying[user], made.world.content[item])
    buy = 3 * buying + made.value[item] - 0.7 - 0.8 * log_price
    noise = random.standard_normal(len(user), dtype=np.float32)
    seconds = np.clip(np.exp(3 + 2 * taste + 0.8 * noise), 1, 3600).round(1)
    p_click, p_buy = (1 / (1 + np.exp(-logit)) for logit in (click, buy))
    return p_click.astype(np.float32), p_buy.astype(np.float32), seconds.astype(np.float32)


def main() -> None:
    parser = cli.Parser(prog="em3 shop", description=__doc__, argument_default=argparse.SUPPRESS)
    cli.add_options(parser, shop)
    arguments = vars(parser.parse_args())
    cli.check_arguments(shop, arguments, "em3 shop --help")
    arguments = cli.with_local_paths(shop, arguments)
    best = shop(**arguments)
    told = ", ".join(f"{name} {value:.4f}" for name, value in best.items())
    said = f"{arguments['out']}: the best AUC that is possible on the last tenth: {told}"
    following = f"em3 prepare table --mapping {shlex.quote(str(arguments['out'] / 'shop.toml'))} --out data/shop"
    terminal.result(said, next_command=following, out=str(arguments["out"]), best_auc=best)
