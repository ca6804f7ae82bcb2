"""Deltas under load: no torn read, whoever comes late catches up, what does not fit is one line, and one can roll back."""

import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from em3_jax.export import command as export
from em3_jax.serving import deltas, store
from em3_jax.serving.service import Model, Service
from em3_jax.serving.version import Version
from tests.conftest import user_error
from tests.export.served_runs import PLAIN, runs  # noqa: F401
from tests.serving.test_serve import ASKED, Client, serving

pytestmark = pytest.mark.quickly_compiled


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory) -> Version:  # noqa: F811
    root = tmp_path_factory.mktemp("exported")
    export.export(runs("em3"), root, PLAIN)
    return store.open_current(root)


class Writer:
    """Publishes versions to a store as a stream does: each with other table rows, and a bias of its own."""

    def __init__(self, root: Path, exported: Version, keep: int = 1000):
        self.root, self.keep, self.random = root, keep, np.random.default_rng(0)
        self.version: Version | None = None
        self.facts = {key: value for key, value in exported.manifest.items() if key not in deltas.OWN}
        self.arrays, self.files = exported.arrays, exported.files

    def publish(self, more: dict | None = None) -> Version:
        with store.writing(self.root) as folder:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            arrays = self.arrays | (more or {})
            if self.version is None:
                deltas.write_whole(folder, Version.made(folder, {}, arrays, self.files))
                manifest = deltas.with_sums(self.facts, arrays, self.files)
                made = Version.made(folder, manifest, arrays, self.files)
            else:
                rows = np.unique(arrays["item_rows"][:, 0])
                arrays["table"] = arrays["table"].copy()
                arrays["table"][rows] = self.random.standard_normal((len(rows), arrays["table"].shape[1]))
                changes = deltas.difference(self.version, arrays, self.files)
                made, manifest = deltas.write(folder, self.version, changes, self.facts)
            self.version = deltas.named(made, store.publish(self.root, manifest, self.keep))
        self.arrays = arrays
        return self.version


def test_what_is_other_is_found_to_the_bit_and_applied(tmp_path):
    random = np.random.default_rng(1)
    old = {
        "a": random.standard_normal((50, 3)),
        "b": np.zeros(7, bool),
        "c": np.arange(4),
        "d": np.ones((3, 2), np.float32),
    }
    new = {
        "a": np.concatenate([old["a"], np.zeros((2, 3))]),
        "b": old["b"][:5],
        "c": old["c"].astype(np.int8),
        "e": np.zeros(0),
    }
    new["a"][4, 1], new["a"][5, 0], new["a"][6] = np.nan, -0.0, old["a"][6]
    old["a"][5, 0] = 0.0
    base = Version.made(
        tmp_path, deltas.with_sums({"serving": {}, "kept": 1}, old, {"f": b"1"}) | {"version": "1"}, old, {"f": b"1"}
    )
    found = deltas.difference(base, new, {"g": b"2"})
    assert found.rows["a"].tolist() == [4, 5, 50, 51] and len(found.rows["b"]) == 0 and "c" not in found.rows
    assert found.gone == ["d", "f"] and found.files == {"g": b"2"}
    made, manifest = deltas.write(tmp_path, base, found, {"serving": {"x": 1}, "kept": 1})
    assert manifest["facts"] == {} and manifest["serving_facts"] == {"x": 1} and made.manifest["kept"] == 1
    assert set(made.arrays) == set(new) and made.files == {"g": b"2"}
    for name, array in new.items():
        assert made[name].dtype == array.dtype and made[name].tobytes() == array.tobytes()
    assert made.checksum == deltas.with_sums({"serving": {"x": 1}}, new, {"g": b"2"})["checksum"] != base.checksum


def test_no_torn_read_while_deltas_are_applied(exported, tmp_path):
    """Each answer is what the version with its checksum says, while versions follow each other as fast as they can."""
    writer, expected, problems, seen, stop = Writer(tmp_path / "store", exported), {}, [], set(), threading.Event()
    models = [Model(writer.publish())]

    def publish() -> None:
        version = writer.publish()
        models.append(
            Model(store.open_version(writer.root, version.name, have=models[-1].version), (), like=models[-1])
        )
        expected[version.checksum] = models[-1].score(**ASKED).probability

    expected[models[0].checksum] = models[0].score(**ASKED).probability
    with serving(writer.root) as (port, _):

        def load() -> None:
            client = Client(port)
            while not stop.is_set():
                try:
                    status, answer = client("POST", "/score", ASKED)
                    seen.add(answer["checksum"])
                    found = expected.get(answer["checksum"])
                    # Versions are some 0.01 apart; two processes may compile a program to other last bits.
                    if status != 200 or (found is not None and not np.allclose(answer["scores"], found, 0, 1e-6)):
                        problems.append((status, answer))
                except Exception as error:
                    problems.append(error)
                    return

        clients = [threading.Thread(target=load) for _ in range(4)]
        for client in clients:
            client.start()
        for _ in range(40):
            publish()
            time.sleep(0.03)
        deadline = time.monotonic() + 60
        while writer.version.checksum not in seen and time.monotonic() < deadline and not problems:
            time.sleep(0.05)
        stop.set()
        for client in clients:
            client.join()
        assert not problems, problems[0]
        assert (
            len(seen) > 5
            and seen <= set(expected)
            and len({tuple(one.round(5)) for one in expected.values()}) == len(expected)
        )
        client, last = Client(port), writer.version
        assert client("GET", "/health")[1]["checksum"] == last.checksum
        status, answer = client("POST", "/rollback")
        assert status == 200 and answer["checksum"] in expected and answer["version"] < last.name
        assert client("POST", "/rollback") == (422, {"error": "there is no version before to roll back to"})
        publish()
        time.sleep(0.3)  # several looks for a new version
        assert (
            client("POST", "/score", ASKED)[1]["checksum"] == answer["checksum"] and client("GET", "/health")[1]["held"]
        )
        assert client("POST", "/resume")[1] == {"version": writer.version.name, "checksum": writer.version.checksum}


def test_what_a_request_says_of_its_user_is_made_once_and_kept_while_it_says_the_same(exported, monkeypatch):
    model, plain = Model(exported, (), users=2), Model(exported, (), users=0)
    made = []
    side = Model._user_side
    monkeypatch.setattr(
        Model, "_user_side", lambda self, past, *more: made.append(past.user) or side(self, past, *more)
    )
    other = ASKED | {"candidates": [9] * 3000, "context": {}}  # three calls of a program
    for asked in (ASKED, other, ASKED):
        np.testing.assert_array_equal(model.score(**asked).logit, plain.score(**asked).logit)
    assert (model.user_cache.hits, model.user_cache.misses, len(plain.user_cache)) == (2, 1, 0)
    assert len(made) == 1 + 3  # once, and once a request where none is kept
    assert model.score(**ASKED).unknown == plain.score(**ASKED).unknown
    different = [{"user": 2}, {"history": [2, 3, 7]}, {"history_fields": {"rating": [3, 4, 4]}}, {"user": True}]
    for more in different:
        found, expected = model.score(**ASKED | more), plain.score(**ASKED | more)
        np.testing.assert_array_equal(found.logit, expected.logit)
        assert found.unknown == expected.unknown and found.user_known == expected.user_known
    assert model.user_cache.hits == 3 and len(model.user_cache) == 2
    assert "is not known" in user_error(lambda: model.score(**ASKED | {"user": 10**9}, strict=True))


def test_a_delta_that_does_not_fit_is_one_line_and_the_next_whole_version_heals(exported, tmp_path):
    writer = Writer(tmp_path / "store", exported)
    writer.publish()
    with Service(writer.root, poll_seconds=1000, sizes=()) as service:
        first = writer.publish()
        service.refresh()
        assert service.model.checksum == first.checksum
        second, third = writer.publish(), writer.publish()
        path = writer.root / "versions" / second.name / deltas.CHANGES
        content = path.read_bytes()
        path.write_bytes(content[:-9])
        service.refresh()
        assert service.model.name == first.name and "\n" not in service.problem
        assert "changes.npz: not what its manifest says; the file is damaged" in service.problem
        path.write_bytes(content)
        manifest = path.parent / store.MANIFEST
        facts = json.loads(manifest.read_text())
        for wrong in ({"lengths": [1]}, {"base": None}, {"base": second.name}, {"files": []}):
            manifest.write_text(json.dumps(facts | wrong))
            assert "not a readable delta" in user_error(deltas.Delta, path.parent)
        manifest.write_text(json.dumps(facts | {"serving_facts": None}))
        assert "does not fit it" in user_error(deltas.Delta(path.parent).applied_to, service.model.version)
        manifest.write_text(json.dumps(facts | {"base_checksum": "0" * 32}))
        service._refused = None
        service.refresh()
        assert service.model.name == first.name and "it does not fit version" in service.problem
        with Service(
            writer.root, poll_seconds=1000, sizes=()
        ) as again:  # begun now, it serves the newest that there is, too
            assert again.model.checksum == first.checksum and again.problem == service.problem
        writer.version = None
        whole = writer.publish()
        service.refresh()
        assert service.model.checksum == whole.checksum and service.problem == ""
        with Service(writer.root, poll_seconds=1000, sizes=()) as late:
            assert late.model.checksum == whole.checksum
    (writer.root / "versions" / second.name).rename(tmp_path / "gone")
    (writer.root / "current").write_text(third.name)
    assert f"versions/{second.name}/manifest.json: file missing" in user_error(store.open_current, writer.root)


def test_late_and_missed_versions_are_caught_up_with_and_old_ones_go(exported, tmp_path):
    writer = Writer(tmp_path / "store", exported, keep=2)
    writer.publish()
    with Service(writer.root, poll_seconds=1000, sizes=()) as service:
        for _ in range(5):
            writer.publish()
        service.refresh()  # five at once
        assert service.model.checksum == writer.version.checksum
        store.compact(writer.root, "0000004", keep=2)
        store.compact(writer.root, "0000006", keep=2)
        assert store.version_names(writer.root) == ["0000004", "0000005", "0000006"]
        assert not (writer.root / "versions" / "0000001").exists()
        writer.publish()
        assert store.open_current(writer.root, verify=True).checksum == writer.version.checksum
        service.refresh()
        assert service.model.checksum == writer.version.checksum
        expected = Model(store.open_current(writer.root), ()).score(**ASKED)
        np.testing.assert_array_equal(service.model.score(**ASKED).logit, expected.logit)


def test_an_item_that_is_new_can_be_scored_once_its_delta_is_applied(exported, tmp_path):
    """The arrays of items grow by a row before that of an unknown one; the model is as compiled before."""
    from em3_jax.serving import id_index

    writer = Writer(tmp_path / "store", exported)
    writer.publish()
    with Service(writer.root, poll_seconds=1000, sizes=()) as service:
        programs = service.model._programs
        assert not service.model.score(1, [], [4711]).known[0]
        items = service.model.items.ids(np.arange(writer.facts["counts"]["items"]))
        index = id_index.build(np.array([*items, 4711]))
        more = {"item_words": index.words, "item_slots": index.slots}
        for name, array in writer.arrays.items():
            if name in ("item_rows", "has_content") or name.startswith("looked_up."):
                more[name] = np.concatenate([array[:-1], array[7:8], array[-1:]])
        more["content_digest"] = np.concatenate([writer.arrays["content_digest"], np.zeros((1, 2), np.uint64)])
        writer.publish(more)
        service.refresh()
        found = service.model.score(1, [], [4711, items[7], 10**9])
        assert found.known.tolist() == [True, True, False] and found.logit[0] == found.logit[1] != found.logit[2]
        assert service.model._programs is programs and not service.problem
