"""The best items of each user: em3 recommend --workdir=runs/em3 --out top.parquet --count 100

Writes a row for each user and place in the list: `user`, `rank` from 1, `item`, `score` (of a ranking run the probability, by its
calibration, or, where its first label is an amount, what is expected; of a retrieval run the product of the embeddings). Ranked
are all items of the dataset, or those that --candidates lists, but those that the user has had already, in a history or as a
click (--keep-seen ranks them, too). A ranking run scores each user with each item, at the time of the dataset's last row, with
the whole history that it has of the user; a retrieval run compares embeddings, block by block, or by a graph that may miss some
(--approximate), for millions of items. Where the file of candidates has a column `user`, each user has candidates of its own,
so that a ranking run ranks what a retrieval run proposes:

    em3 recommend --workdir=runs/lightgcn --count 500 --approximate --out candidates.parquet
    em3 recommend --workdir=runs/em3 --candidates candidates.parquet --count 20 --out top.parquet

Stopped and called again, it goes on.
"""

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from em3_jax import cli
from em3_jax.config.schema import Retrieval
from em3_jax.core import paths, terminal
from em3_jax.core.errors import UserError
from em3_jax.core.fields import UNKNOWN
from em3_jax.core.numbers import value_column
from em3_jax.core.progress import Progress
from em3_jax.data.format import Dataset
from em3_jax.data.readers.files import column_names, read_table
from em3_jax.data.readers.source import Paths, Source
from em3_jax.evaluation import full_ranking
from em3_jax.evaluation.full_ranking import NO_ITEM, Seen
from em3_jax.export.model import original_ids
from em3_jax.predict import pieces
from em3_jax.predict.nearest_items import NearestItems
from em3_jax.predict.past import Past
from em3_jax.predict.pieces import Pieces
from em3_jax.predict.rows import Rows, numbers_of, values_of
from em3_jax.predict.scorer import Scorer
from em3_jax.serving import id_index
from em3_jax.training.run import Run

COUNT = 100
PAIRS = 1 << 20
"""Pairs of a user and an item that are scored before they are written, about."""


class Recommended(NamedTuple):
    """What `recommend` did: users whose lists were written, rows of all of them, seconds."""

    users: int
    rows: int
    seconds: float


def recommend(
    directory: str | Path,
    out: str | Path,
    *,
    count: int = COUNT,
    users: Paths | None = None,
    candidates: Paths | None = None,
    context: Mapping[str, str] | None = None,
    keep_seen: bool = False,
    approximate: bool = False,
    step: int | None = None,
    data_root: str | Path | None = None,
    pairs: int = PAIRS,
) -> Recommended:
    """Writes each user's best items to `out`.

    Args:
      directory: the folder of a run of task ranking, lemur or retrieval.
      out: a .parquet or .csv file.
      count: items of a list; fewer where fewer are left.
      users: a file with a column `user`; None = all of the dataset.
      candidates: a file with a column `item`, of each user's own ones with a column `user` besides; None = all of the
        dataset.
      context: context field -> its value, of all impressions; a field that is not named is unknown.
      keep_seen: whether to rank what the user has had already.
      approximate: whether a retrieval run's lists may miss some items, as a graph finds them.
      step: checkpoint; the best on validation by default.
      data_root: where the dataset lies now, if it was moved.
      pairs: of a user and an item, that are scored at once, about.

    Raises:
      UserError: whatever the user can mend; what is done is kept.
    """
    if count < 1:
        raise UserError(f"--count {count}: give 1 or more")
    out, context = pieces.checked(out), dict(context or {})
    run = Run.open(directory, data_root)
    ranker: _ByRanking | _ByRetrieval
    if isinstance(run.config, Retrieval):
        if context:
            raise UserError("--context: a retrieval run reads none; leave it out")
        ranker = _ByRetrieval(run, step, approximate)
    elif approximate:
        raise UserError(
            "--approximate: a ranking run has no embeddings of users to search by; let a retrieval run propose, see "
            "--candidates in `em3 recommend --help`"
        )
    else:
        ranker = _ByRanking(Scorer(directory, data_root, step), context)
    dataset = ranker.dataset
    user = _named(dataset.user_table, "user", users)
    offered = _offered(dataset, candidates, user)
    if isinstance(ranker, _ByRetrieval) and offered.of_users:
        raise UserError("--candidates: a retrieval run takes a list for all users; leave the column user out")
    user = offered.users(user)
    seen = _Taken(dataset) if not keep_seen else None
    at_once = max(int(pairs / max(offered.mean, 1)), 1)
    plan = {
        "data": run.data_hash, "step": ranker.step, "count": count, "users": _hash(user), "items": offered.hash(),
        "context": context, "keep_seen": keep_seen, "at_once": at_once, "scores": ranker.plan,
    }  # fmt: skip
    began = time.perf_counter()
    ids = [original_ids(table) for table in (dataset.user_table, dataset.item_table)]
    with Pieces(out, plan) as made:
        progress = Progress(len(user), unit="user")
        for number, start in enumerate(range(0, len(user), at_once)):
            part = user[start : start + at_once]
            if not made.has(number):
                best, score = ranker(part, offered, count, seen)
                made.write(number, _table(ids, part, best, score))
            progress.advance(len(part))
        progress.close()
        rows = made.finish()
    return Recommended(len(user), rows, time.perf_counter() - began)


class _Offered(NamedTuple):
    """The items that are ranked for each user.

    Attributes:
      item: rows of items, of all users one after the other.
      of_users: row of a user -> where its own ones start and end; empty = all users have all.
    """

    item: np.ndarray
    of_users: dict[int, tuple[int, int]]

    @property
    def mean(self) -> float:
        """Items of a user."""
        return len(self.item) / max(len(self.of_users), 1)

    def users(self, user: np.ndarray) -> np.ndarray:
        """Those of the users who have candidates."""
        return np.array([one for one in user.tolist() if one in self.of_users], np.int64) if self.of_users else user

    def of(self, user: int) -> np.ndarray:
        """Rows of the items of a user."""
        return self.item[slice(*self.of_users[user])] if self.of_users else self.item

    def hash(self) -> str:
        """Of what it says."""
        return _hash(np.concatenate([self.item, *(np.array([k, *v]) for k, v in self.of_users.items())]))


class _Taken:
    """The items that each user has had: those of the user's events, and of clicked rows."""

    def __init__(self, dataset: Dataset):
        columns = dataset.interactions
        clicked = np.flatnonzero(np.asarray(columns["label"]) == 1)
        self._user, self._item = np.asarray(columns["user"])[clicked], np.asarray(columns["item"])[clicked]
        order = np.argsort(self._user, kind="stable")
        self._user, self._item = self._user[order], self._item[order]
        self._events, self._past = dataset.events["item"], None
        try:
            self._past = Past(dataset)
        except UserError:  # histories that came with rows are no user's
            pass

    def of(self, user: int) -> np.ndarray:
        """Rows of the items."""
        first, last = np.searchsorted(self._user, [user, user + 1])
        found = [self._item[first:last]]
        if self._past is not None:
            start, end = self._past.ranges(np.array([user]), None)
            found.append(np.asarray(self._events[start[0] : end[0]]))
        return np.unique(np.concatenate(found))


def _had(seen: _Taken | None, user: np.ndarray) -> list[np.ndarray]:
    """What each user has had; of nobody anything, where that is ranked, too."""
    return [] if seen is None else [seen.of(int(one)) for one in user]


class _ByRanking:
    """Lists by the scores of a ranking run."""

    def __init__(self, scorer: Scorer, context: Mapping[str, str]):
        self._scorer, self.dataset, self.step = scorer, scorer.dataset, scorer.step
        self.plan = scorer.calibrations.to_json()
        values, numbers = values_of(self.dataset), numbers_of(self.dataset)
        for name in context:
            if name not in values | numbers:
                known = ", ".join(values | numbers) or "there are none"
                raise UserError(f"--context {name}=...: no such context field; {known}")
        self._context: dict[str, Any] = {f"context_{name}": np.int32(UNKNOWN) for name in values}
        self._context |= {value_column(name): np.float32(np.nan) for name in numbers}
        for name, value in context.items():
            is_number = name in numbers
            found, is_known = numbers[name].values([value]) if is_number else values[name].ids([value])
            if not is_known[0]:
                wrong = "is no number" if is_number else "training has no such value"
                raise UserError(f"--context {name}={value}: {wrong}")
            self._context |= {value_column(name): found[0]} if is_number else {f"context_{name}": np.int32(found[0])}
        self._past = Past(self.dataset) if scorer.history_length else None
        self._now = int(self.dataset.interactions["time"][-1])

    def __call__(self, user: np.ndarray, offered: _Offered, count: int, seen: _Taken | None):
        """([users, count] rows of items, `NO_ITEM` where there are fewer; their probabilities)."""
        items = [offered.of(int(one)) for one in user]
        lengths = np.array([len(one) for one in items])
        of_user, of_item, n = np.repeat(user, lengths), np.concatenate(items), int(lengths.sum())
        columns = {"user": of_user, "item": of_item, "label": np.zeros(n, np.uint8)}
        columns["time"] = np.full(n, self._now)
        columns |= {name: np.zeros(n, np.uint8) for name in self.dataset.interactions if name.startswith("label_")}
        columns |= {f"amount_{name}": np.zeros(n, np.float32) for name in self.dataset.amounts}
        columns |= {name: np.full(n, value) for name, value in self._context.items()}
        nothing = np.zeros(len(user), np.int64)
        ranges = (nothing, nothing) if self._past is None else self._past.ranges(user, None)
        of_each = (np.repeat(one, lengths) for one in ranges)
        columns |= dict(zip(("history_start", "history_end"), of_each, strict=True))
        logits, further = self._scorer(Rows(self.dataset, columns, self.dataset.events))
        found = self._scorer.probabilities(logits, further) | self._scorer.expected(logits, further)
        width = min(count, int(lengths.max()))
        best, score = np.full((len(user), width), NO_ITEM), np.full((len(user), width), -np.inf)
        scores = np.split(found[""], np.cumsum(lengths)[:-1])
        had = _had(seen, user) or [np.zeros(0, np.int64)] * len(user)
        for k, (own, own_score, taken) in enumerate(zip(items, scores, had, strict=True)):
            own_score = np.where(np.isin(own, taken), -np.inf, own_score)
            order = np.argsort(-own_score, kind="stable")[:width]
            order = order[np.isfinite(own_score[order])]
            best[k, : len(order)], score[k, : len(order)] = own[order], own_score[order]
        return best, score


class _ByRetrieval:
    """Lists by the embeddings of a retrieval run."""

    def __init__(self, run: Run, step: int | None, approximate: bool):
        parts = run.experiment
        run.check_data()
        state = run.state(step)
        self.dataset, self.step = parts.work.dataset, int(state.step)
        settings: Any = parts.config.eval
        self._blocks = {"user_block": settings.user_block, "item_block": settings.item_block}
        self._users, self._items = parts.program.predict(state, {})
        self.plan = "embeddings, by a graph" if approximate else "embeddings"
        self._approximate = approximate
        self._graph: NearestItems | None = None

    def __call__(self, user: np.ndarray, offered: _Offered, count: int, seen: _Taken | None):
        """([users, count] rows of items, `NO_ITEM` where there are fewer; their scores)."""
        item = offered.item
        place = np.full(self.dataset.num_items, -1)
        place[item] = np.arange(len(item))
        taken = [own[own >= 0] for own in (place[had] for had in _had(seen, user))]
        users, items, k = self._users[user], self._items[item], min(count, len(item))
        if self._approximate:
            if self._graph is None:
                self._graph = NearestItems(np.asarray(items))
            lists = self._graph.best(np.asarray(users), k, taken)
        else:
            row = np.repeat(np.arange(len(taken)), [len(one) for one in taken])
            left_out = Seen(row, np.concatenate([np.zeros(0, np.int64), *taken]))
            lists = full_ranking.best_items(users, items, left_out, k=k, **self._blocks)
        score = np.einsum("ud,ukd->uk", np.asarray(users), np.asarray(items)[np.maximum(lists, 0)])
        return np.where(lists == NO_ITEM, NO_ITEM, item[np.maximum(lists, 0)]), score


def _offered(dataset: Dataset, candidates: Paths | None, user: np.ndarray) -> _Offered:
    """The items of a file of candidates, or all."""
    source = None if candidates is None else Source(candidates)
    if source is None or "user" not in column_names(source):
        return _Offered(_named(dataset.item_table, "item", candidates), {})
    words = read_table(source, ["user", "item"], {"user", "item"}).drop_null()
    of_user = _rows(source, dataset.user_table, "user", words.column("user").to_pylist())
    of_item = _rows(source, dataset.item_table, "item", words.column("item").to_pylist())
    asked = np.isin(of_user, user)
    if not asked.any():
        raise UserError(f"{source}: has candidates of none of the users; is it the right file?")
    pairs = np.unique(np.stack([of_user[asked], of_item[asked]], axis=1), axis=0)
    names, starts = np.unique(pairs[:, 0], return_index=True)
    ends = [*starts[1:].tolist(), len(pairs)]
    return _Offered(pairs[:, 1], dict(zip(names.tolist(), zip(starts.tolist(), ends, strict=True), strict=True)))


def _named(table: pa.Table, kind: str, given: Paths | None) -> np.ndarray:
    """Rows of the users or items that a file names, or of all."""
    if given is None:
        return np.arange(table.num_rows)
    source = Source(given)
    if kind not in column_names(source):
        raise UserError(f"{source}: no column '{kind}' (there are: {', '.join(column_names(source))}); name it so")
    words = read_table(source, [kind], {kind}).column(kind).drop_null().to_pylist()
    return np.asarray(list(dict.fromkeys(_rows(source, table, kind, words).tolist())), np.int64)


def _rows(source: Source, table: pa.Table, kind: str, words: list) -> np.ndarray:
    """Rows of the users or items that a file names."""
    if not words:
        raise UserError(f"{source}: names no {kind}; is it the right file?")
    rows = id_index.build(original_ids(table)).find(words)
    if (rows < 0).any():
        missed = words[int(np.argmax(rows < 0))]
        raise UserError(
            f"{source}: {kind} '{missed}' is not in the dataset ({int((rows < 0).sum()):,} such); leave it out"
        )
    return np.asarray(rows)


def _hash(rows: np.ndarray) -> str:
    return hashlib.sha256(rows.tobytes()).hexdigest()


def _table(ids: list[np.ndarray], user: np.ndarray, best: np.ndarray, score: np.ndarray) -> pa.Table:
    """A row for each place of each list that has an item."""
    row, place = np.nonzero(best != NO_ITEM)
    return pa.table(
        {
            "user": ids[0][user[row]],
            "rank": (place + 1).astype(np.int32),
            "item": ids[1][best[row, place]],
            "score": score[row, place],
        }
    )


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument(
        "--workdir", type=paths.local, required=True, help="the folder of a ranking, LEMUR or retrieval run"
    )
    parser.add_argument("--out", type=paths.local, required=True, help="the .parquet or .csv file to write")
    parser.add_argument("--count", type=int, default=COUNT, help=f"items of a list (default {COUNT})")
    parser.add_argument("--users", default="all", help="a file with a column user (default: all)")
    parser.add_argument(
        "--candidates", default="all", help="a file with a column item, or user and item (default: all)"
    )
    parser.add_argument("--context", type=cli.as_pairs, default={}, help="field=value,... of all impressions")
    parser.add_argument("--keep-seen", action="store_true", help="rank what the user has had already, too")
    parser.add_argument(
        "--approximate", action="store_true", help="search the items of a retrieval run by a graph that may miss some"
    )
    parser.add_argument("--step", type=int, help="checkpoint (default: the best on validation)")
    parser.add_argument("--data", type=paths.local, help="the dataset folder, if it was moved since training")
    args = parser.parse_args()
    users, candidates = (None if one == "all" else one for one in (args.users, args.candidates))
    done = recommend(
        args.workdir, args.out, count=args.count, users=users, candidates=candidates, context=args.context,
        keep_seen=args.keep_seen, approximate=args.approximate, step=args.step, data_root=args.data,
    )  # fmt: skip
    speed = f"{done.users / max(done.seconds, 1e-9):,.0f} users a second"
    said = f"{args.out}: {done.users:,} users, {done.rows:,} rows, {speed}"
    terminal.result(said, out=str(args.out), users=done.users, rows=done.rows, seconds=done.seconds)
