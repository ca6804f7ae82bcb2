"""`em3 recommend`: lists of a ranking run against scores one by one, of a retrieval run against its evaluation, and mistakes."""

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from configs import retrieval
from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.data.readers.mmrec import mmrec
from em3_jax.predict import scorer
from em3_jax.predict.command import predict
from em3_jax.predict.recommend import recommend
from tests.conftest import user_error

pytestmark = pytest.mark.quickly_compiled


def read(path) -> dict[int, list[int]]:
    """User -> the items of the list, best first."""
    found: dict[int, list[int]] = {}
    for row in pq.read_table(path).to_pylist():
        found.setdefault(row["user"], []).append(row["item"])
        assert row["rank"] == len(found[row["user"]])
    return found


@pytest.fixture(scope="module")
def some_users(planted, tmp_path_factory):
    path = tmp_path_factory.mktemp("some") / "users.csv"
    path.write_text("user\n" + "\n".join(map(str, planted.user_table.column("id").to_pylist()[:5])) + "\n")
    return path


def test_lists_are_the_highest_scores(scored, planted, some_users, tmp_path):
    recommend(scored, tmp_path / "top.parquet", count=7, users=some_users, keep_seen=True, pairs=300)
    users, items = (table.column("id").to_pylist() for table in (planted.user_table, planted.item_table))
    pairs = pa.table({"user": np.repeat(users[:5], len(items)), "item": np.tile(items, 5)})
    pq.write_table(pairs, tmp_path / "pairs.parquet")
    predict(scored, tmp_path / "pairs.parquet", tmp_path / "scores.parquet", without=["slot"])
    score = pq.read_table(tmp_path / "scores.parquet").column("probability").to_numpy().reshape(5, -1)
    found = read(tmp_path / "top.parquet")
    assert list(found) == users[:5]
    for k, user in enumerate(users[:5]):
        own = score[k][[items.index(one) for one in found[user]]]
        assert (np.diff(own) <= 1e-6).all() and own[-1] >= np.sort(score[k])[-7] - 1e-6
    top = pq.read_table(tmp_path / "top.parquet").column("score").to_numpy()
    assert len(top) == 35 and ((top > 0) & (top < 1)).all()


def test_what_a_user_has_had_is_left_out(scored, planted, some_users, tmp_path):
    done = recommend(scored, tmp_path / "top.csv", count=1000, users=some_users, context={"slot": slot(planted)})
    found = pa.csv.read_csv(tmp_path / "top.csv").to_pylist()
    assert done.rows == len(found)
    columns = planted.interactions
    items = planted.item_table.column("id").to_numpy()
    for user in range(5):
        rows = np.flatnonzero(columns["user"] == user)
        had = set(items[columns["item"][rows[columns["label"][rows] == 1]]])
        for row in rows:
            had |= set(items[planted.events["item"][columns["history_start"][row] : columns["history_end"][row]]])
        listed = {row["item"] for row in found if row["user"] == user}
        assert not listed & had and had and len(listed) == len(items) - len(had)


def slot(dataset) -> str:
    return dataset.meta["vocabularies"]["context"]["slot"][0]


def test_candidates_of_a_file_and_a_kill(scored, planted, some_users, tmp_path, monkeypatch):
    some = planted.item_table.column("id").to_pylist()[10:30]
    pq.write_table(pa.table({"item": some}), tmp_path / "items.parquet")
    options = {"count": 3, "users": some_users, "candidates": tmp_path / "items.parquet", "pairs": 20}
    whole, calls = scorer.Scorer.__call__, []

    def dies(self, rows):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, rows)

    monkeypatch.setattr(scorer.Scorer, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        recommend(scored, tmp_path / "top.parquet", **options)
    recommend(scored, tmp_path / "top.parquet", **options)
    assert len(calls) == 6, "two users were done before"
    assert all(set(listed) <= set(some) for listed in read(tmp_path / "top.parquet").values())


def test_each_user_has_candidates_of_its_own(scored, planted, some_users, tmp_path):
    users, items = (table.column("id").to_pylist() for table in (planted.user_table, planted.item_table))
    own = {users[0]: items[:4], users[2]: items[3:9], users[9]: items[:2]}
    pairs = [(user, item) for user, some in own.items() for item in some]
    pq.write_table(
        pa.table(dict(zip(("user", "item"), zip(*pairs, strict=True), strict=True))), tmp_path / "own.parquet"
    )
    options = {"count": 5, "keep_seen": True}
    recommend(scored, tmp_path / "own_top.parquet", candidates=tmp_path / "own.parquet", users=some_users, **options)
    found = read(tmp_path / "own_top.parquet")
    assert {user: len(some) for user, some in found.items()} == {users[0]: 4, users[2]: 5}, (
        "the third was not asked for"
    )
    recommend(scored, tmp_path / "top.parquet", users=some_users, count=len(items), keep_seen=True)
    for user, some in found.items():
        of_all = [one for one in read(tmp_path / "top.parquet")[user] if one in own[user]]
        assert some == of_all[:5]
    assert "--approximate" in user_error(lambda: recommend(scored, tmp_path / "x.parquet", approximate=True))


def test_a_retrieval_runs_lists_are_those_of_its_evaluation(tmp_path):
    random = np.random.default_rng(0)
    users, items = 40, 60
    lines = ["userID\titemID\tx_label"]
    for user in range(users):
        for k, item in enumerate(random.permutation(items)[:8]):
            lines.append(f"{user}\t{item}\t{max(0, k - 5)}")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "interactions.tsv").write_text("\n".join(lines) + "\n")
    np.save(tmp_path / "source" / "image_feat.npy", random.standard_normal((items, 8)).astype(np.float32))
    dataset = mmrec(tmp_path / "data", source=tmp_path / "source")
    config = retrieval.get_config("lightgcn")
    config.data.root, config.train.epochs = str(dataset.root), 2.0
    train.train(config, tmp_path / "run")
    evaluation.evaluate(tmp_path / "run", "test")
    expected = np.load(tmp_path / "run" / "eval_test_items.npy")
    recommend(tmp_path / "run", tmp_path / "all.parquet", count=50, keep_seen=True)
    recommend(tmp_path / "run", tmp_path / "new.parquet", count=50)
    every, new = read(tmp_path / "all.parquet"), read(tmp_path / "new.parquet")
    columns = dataset.interactions
    for user in range(users):
        own = columns["item"][columns["user"] == user]
        training = set(columns["item"][(columns["user"] == user) & (columns["split"] == 0)].tolist())
        assert [one for one in every[user] if one not in training][:20] == [one for one in expected[user] if one >= 0][
            :20
        ]
        assert not set(new[user]) & set(own.tolist()) and len(new[user]) == min(50, items - len(own))
    recommend(tmp_path / "run", tmp_path / "near.parquet", count=50, approximate=True)
    near = read(tmp_path / "near.parquet")
    shared = [len(set(near[user][:10]) & set(new[user][:10])) for user in range(users)]
    assert np.mean(shared) > 9.5 and all(not set(near[user]) - set(range(items)) for user in range(users))
    assert all(len(near[user]) == len(new[user]) for user in range(users)), "what was had is no loss of length"
    assert "--context" in user_error(lambda: recommend(tmp_path / "run", tmp_path / "x.parquet", context={"a": "b"}))


def test_mistakes_are_one_line(scored, planted, tmp_path):
    out = tmp_path / "top.parquet"
    say = lambda **options: user_error(lambda: recommend(scored, out, **options))  # noqa: E731
    assert "--count 0" in say(count=0)
    assert "no such context field" in say(context={"place": "x"})
    assert "no such value" in say(context={"slot": "never"})
    (tmp_path / "users.csv").write_text("user\n987654321\n")
    assert "'987654321' is not in the dataset" in say(users=tmp_path / "users.csv")
    (tmp_path / "other.csv").write_text("uid\n1\n")
    assert "no column 'user'" in say(users=tmp_path / "other.csv")
    assert ".parquet or .csv" in user_error(lambda: recommend(scored, tmp_path / "top.txt"))
    assert not out.exists() and planted.num_users
