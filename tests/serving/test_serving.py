"""Values and ids as people send them: of whatever type, scores are those of `eval.py`."""

import contextlib
import decimal
import io
import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from jax import export as jax_export

from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.core.fields import UNKNOWN
from em3_jax.data.features import write_features
from em3_jax.data.format import Dataset
from em3_jax.data.readers.movielens import movielens
from em3_jax.data.readers.table import table
from em3_jax.export import command as export
from em3_jax.export import scorer
from em3_jax.serving import id_index, programs, store
from em3_jax.serving.field_values import FieldValues
from em3_jax.serving.programs import ProgramError
from em3_jax.serving.service import Model, Scores, Service
from em3_jax.serving.store import Version
from em3_jax.training.checkpoint import Checkpoints
from em3_jax.training.run import Run
from tests.conftest import ROOT, user_error
from tests.serving.test_serve import Client, serving
from tests.small_runs import small_config

pytestmark = pytest.mark.quickly_compiled

PLAIN = export.Settings(batch_size=64, platforms=("cpu",))
ITEMS, USERS, EACH = 190, 30, 12
DOCS_HISTORY, DOCS_RATINGS, DOCS_CANDIDATES = [1, 50, 181], [5, 5, 4], [172, 174]


class Served(NamedTuple):
    """A run, what `eval.py` says of its test rows, and the store it was exported to."""

    dataset: Dataset
    run: Path
    logits: np.ndarray
    store: Path


def serve(dataset: Dataset, folder: Path, **settings) -> Served:
    """Trains a few steps, evaluates, exports."""
    config = small_config(dataset, data__batch_size=64, **settings)
    config.model.backbone_settings.hidden, config.model.cic.id_fields = (8,), ("item",)
    config = config.to_dict()
    config["train"] |= {"epochs": 6.0, "log_every": 100, "eval_every": 100, "patience": 0}
    config["tables"]["init_scale"] = 0.5  # so that each value moves the score
    train.train(config, folder / "run")
    evaluation.evaluate(folder / "run", "test")
    export.export(folder / "run", folder / "store", PLAIN)
    logits = np.load(folder / "run" / "eval_test_logits.npy")
    return Served(dataset, folder / "run", logits, folder / "store")


def ratings() -> list[tuple[int, int, float, int]]:
    """(user, item, rating, time); the last two are the request of docs/serving.md, as rows of a log."""
    random = np.random.default_rng(5)
    rows = []
    for user in range(2, USERS + 2):
        items = random.choice(np.arange(1, ITEMS + 1), EACH, replace=False)
        stars = random.integers(1, 11, EACH) / 2
        times = random.integers(10, 1000, EACH)
        rows += zip([user] * EACH, items.tolist(), stars.tolist(), times.tolist(), strict=True)
    past = zip(DOCS_HISTORY, DOCS_RATINGS, strict=True)
    rows += [(1, item, float(rating), k) for k, (item, rating) in enumerate(past)]
    asked = zip(DOCS_CANDIDATES, (5.0, 1.0), strict=True)
    return rows + [(1, item, rating, 2000) for item, rating in asked]


@pytest.fixture(scope="module")
def movies(tmp_path_factory) -> Served:
    """MovieLens as GroupLens ships the latest one: ratings are 0.5, 1.0, ..., 5.0."""
    folder = tmp_path_factory.mktemp("movies")
    lines = ["userId,movieId,rating,timestamp", *(",".join(map(str, row)) for row in ratings())]
    (folder / "ratings.csv").write_text("\n".join(lines) + "\n")
    films = [f"{item},Film {item} (1990),{'DW'[item % 2]}" for item in range(1, ITEMS + 1)]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *films]) + "\n")
    dataset = movielens(folder / "data", source=folder)
    tokens = np.random.default_rng(1).standard_normal((ITEMS, 2, 8)).astype(np.float32)
    mask, of_items = np.ones((ITEMS, 2), bool), dataset.meta["item_hash"]
    write_features(dataset.root, "poster", tokens, mask, {}, of_items)
    return serve(dataset, folder, data__features=("poster",))


def rows_of_test(served: Served) -> list[dict]:
    """Of each row of the test split: the original user, history, ratings and candidate."""
    dataset, stars = served.dataset, {(user, item): rating for user, item, rating, _ in ratings()}
    columns, requests = dataset.interactions, []
    users, items = (np.array(one.column("id")) for one in (dataset.user_table, dataset.item_table))
    for row in dataset.split_rows("test"):
        user = int(users[columns["user"][row]])
        events = dataset.events["item"][columns["history_start"][row] : columns["history_end"][row]]
        history = [int(items[item]) for item in events]
        requests.append({
            "user": user, "history": history, "candidates": [int(items[columns["item"][row]])],
            "history_fields": {"rating": [stars[user, item] for item in history]},
        })  # fmt: skip
    return requests


rows_of_test.__test__ = False
NUMBERS = {  # as JSON and its neighbours write numbers
    "floats": float,
    "ints where they are whole": lambda value: int(value) if value == int(value) else value,
    "texts": str,
    "short texts": lambda value: f"{value:g}",
    "numpy": np.float32,
    "decimals": lambda value: decimal.Decimal(str(value)),
}


def written(request: dict, form) -> dict:
    """The same request with all its ids and values in another form."""
    lists = {name: [*map(form, request[name])] for name in ("history", "candidates")}
    fields = {name: [*map(form, values)] for name, values in request["history_fields"].items()}
    return request | lists | {"user": form(request["user"]), "history_fields": fields}


def probability(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


@pytest.mark.parametrize("form", NUMBERS)
def test_scores_are_those_of_eval_in_whatever_form_numbers_come(movies, form):
    model = Model(store.open_current(movies.store))
    answers = [model.score(**written(request, NUMBERS[form])) for request in rows_of_test(movies)]
    found = np.array([answer.probability[0] for answer in answers])
    np.testing.assert_allclose(found, probability(movies.logits), rtol=0, atol=1e-6)
    assert all(not answer.unknown for answer in answers)
    blank = [model.score(**request | {"history_fields": {}}) for request in rows_of_test(movies)]
    differences = abs(found - np.array([one.probability[0] for one in blank]))
    assert max(differences) > 1e-3  # ratings do matter


def test_the_block_of_the_docs_runs_and_scores_as_eval(movies, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/serving.md").read_text("utf-8"), re.DOTALL)
    (block,) = (one for one in blocks if "em3_jax.serving" in one)
    monkeypatch.chdir(movies.store.parent)
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(block, names)
    assert names["known"].tolist() == [True, True, False] and len(names["vectors"]) == 3
    candidates = [request["candidates"][0] for request in rows_of_test(movies)]
    rows = [candidates.index(item, len(candidates) - 2) for item in DOCS_CANDIDATES]
    expected = probability(movies.logits[rows])
    np.testing.assert_allclose(names["scores"].probability, expected, rtol=0, atol=1e-6)
    assert names["scores"].unknown == {}


def test_over_http_the_same_whatever_the_types_of_json(movies):
    requests = rows_of_test(movies)[-4:]
    expected = probability(movies.logits[-4:])
    with serving(movies.store) as (port, _):
        client = Client(port)
        for form in (float, NUMBERS["ints where they are whole"], str):
            bodies = [written(one, form) | {"strict": True} for one in requests]
            answers = [client("POST", "/score", body) for body in bodies]
            assert all(status == 200 and one["unknown"] == {} for status, one in answers)
            found = [one["scores"][0] for _, one in answers]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        same = [client("GET", f"/similar?item={item}&count=3")[1] for item in ("50", "50.0")]
        assert same[0] == same[1] and len(same[0]["items"]) == 3
        asked = requests[-1] | {"candidates": [1, 10**9]}
        asked |= {"history_fields": {"rating": [5, True, None]}}
        status, answer = client("POST", "/score", asked)
        counts = {"candidates": 1, "history_fields.rating": 1}
        assert status == 200 and answer["unknown"] == counts and answer["known"] == [True, False]
        status, answer = client("POST", "/score", asked | {"candidates": [1], "strict": True})
        words = "history_fields.rating: 'True' is not known, which a strict request refuses"
        assert (status, answer) == (422, {"error": words})
        metrics = client("GET", "/metrics")[1]
        assert 'em3_unknown_values_total{field="history_fields.rating"} 1.0' in metrics
    with serving(movies.store, "--strict") as (port, _):
        assert Client(port)("POST", "/score", asked)[0] == 422
        assert Client(port)("POST", "/score", asked | {"strict": False})[0] == 200


def test_what_is_not_known_is_counted_by_field_and_refused_if_strict(movies):
    version = store.open_current(movies.store)
    model, strict = Model(version), Model(version, strict=True)
    asked = {"user": 1, "history": [1, 50, 181], "candidates": [172, 174]}
    junk = asked | {"history_fields": {"rating": ["junk", 5.25, 5]}}
    assert model.score(**junk).unknown == {"history_fields.rating": 2}
    words = "history_fields.rating: 'junk' is not known, which a strict request refuses"
    assert user_error(lambda: strict.score(**junk)) == words
    assert user_error(lambda: model.score(**junk, strict=True)) == words
    assert strict.score(**junk, strict=False).unknown == {"history_fields.rating": 2}
    strangers = {"user": 10**6, "history": [1, 10**6], "candidates": [10**6, 10**7, 172]}
    assert model.score(**strangers).unknown == {"user": 1, "history": 1, "candidates": 2}
    # What is missing is not unknown, and is scored as training has it: as the field's unknown id.
    for missing in (None, float("nan"), ""):
        lacking = asked | {"history_fields": {"rating": [missing] * 3}}
        answer = strict.score(**lacking)
        unknown = model.score(**asked | {"history_fields": {"rating": ["junk"] * 3}})
        assert not answer.unknown and (answer.logit == unknown.logit).all()
    assert not strict.score(**asked | {"user": None}).user_known
    assert "no such field; known: rating" in user_error(
        lambda: model.score(**asked, history_fields={"mood": [1, 2, 3]})
    )


def log_of_truths(rows: int = 400) -> pa.Table:
    random = np.random.default_rng(2)
    hour = random.integers(3, 7, rows)
    return pa.table({
        "user": random.integers(1, 9, rows), "item": random.integers(1, 20, rows),
        "label": random.integers(0, 2, rows), "time": np.arange(rows),
        "is_new": random.integers(0, 2, rows).astype(bool), "hour": hour, "half": hour / 2,
    })  # fmt: skip


FIELDS = ("is_new", "hour", "half")
TRUE = [True, np.True_, "true", "True", "TRUE"]
FIVE = [5, 5.0, "5", "5.0", np.float32(5), np.int64(5), decimal.Decimal("5.0")]


@pytest.fixture(scope="module")
def truths(tmp_path_factory) -> dict[str, Dataset]:
    """The same log from Parquet and from CSV."""
    folder, log = tmp_path_factory.mktemp("truths"), log_of_truths()
    pa.parquet.write_table(log, folder / "log.parquet")
    pa.csv.write_csv(log, folder / "log.csv")
    return {
        kind: table(folder / kind, interactions=folder / f"log.{kind}", context_fields=FIELDS)
        for kind in ("parquet", "csv")
    }


def test_truth_values_and_whole_numbers_are_known_from_every_kind_of_file(truths):
    for dataset in truths.values():
        words = dataset.meta["vocabularies"]["context"]
        fields = {name: FieldValues(name, words[name], len(words[name]) + 2) for name in FIELDS}
        halves = [2.5, "2.5", np.float16(2.5)]
        for name, ways in (("is_new", TRUE), ("hour", FIVE), ("half", halves)):
            ids, known = fields[name].ids(ways)
            assert known.all() and len(set(ids.tolist())) == 1 and ids[0] > UNKNOWN
        assert fields["half"].ids([2, "2.0", 2.0])[1].all()
        assert fields["hour"].ids([True, "05", 5.5, "x"])[1].tolist() == [False] * 4
        assert (fields["is_new"].ids([True])[0] != fields["is_new"].ids([False])[0]).all()


def test_context_of_any_type_scores_as_eval(truths, tmp_path):
    served = serve(truths["parquet"], tmp_path, model__content="none", data__features=())
    dataset, log = served.dataset, log_of_truths().to_pylist()
    columns = dataset.interactions
    answers = {"as Python": [], "as JSON of floats": [], "as texts": []}
    items = np.array(dataset.item_table.column("id"))
    with Service(served.store, poll_seconds=60, sizes=()) as service:
        for row in dataset.split_rows("test"):
            given = log[columns["time"][row]]
            span = slice(columns["history_start"][row], columns["history_end"][row])
            events = dataset.events["item"][span]
            context = {name: given[name] for name in FIELDS}
            floats = context | {"hour": float(given["hour"])}
            texts = {name: str(value) for name, value in floats.items()}
            for name, one in zip(answers, (context, floats, texts), strict=True):
                asked = given["user"], items[events], [given["item"]]
                scores = service.model.score(*asked, context=one, strict=True)
                answers[name].append(scores.probability[0])
    for found in answers.values():
        np.testing.assert_allclose(found, probability(served.logits), rtol=0, atol=1e-6)


def replaced(version: Version, **changes) -> Version:
    """The version with other facts for services in its manifest."""
    facts = version.manifest["serving"] | changes
    kept = {name: fact for name, fact in facts.items() if fact is not None}
    version.manifest = version.manifest | {"serving": kept}
    return version


def test_a_store_of_before_is_served_right(movies):
    """Values as they were read (5.0), ids as texts, one program for any number of candidates."""
    version = store.open_current(movies.store)
    new, requests = Model(version), rows_of_test(movies)
    old = store.open_current(movies.store)
    run = Run.open(movies.run)
    parts = run.experiment
    state, _ = Checkpoints(movies.run, run.data_hash).restore(parts.program.shapes)
    facts = version.manifest["serving"]
    number, fields = jax_export.symbolic_shape("b")[0], parts.work.dataset.fields
    length, widths = facts["history_length"], facts["looked_up"]
    shapes = scorer.request_shapes(fields, length, widths, number)
    of_table = jax.ShapeDtypeStruct(version["table"].shape, jnp.float32)
    program = scorer.compile_ahead(parts.work.task, state.params, of_table, shapes, ("cpu",))
    old._bytes = {"scorer.bin": program.serialize(), "params.npz": version.read_bytes("params.npz")}
    floats = [float(value) for value in facts["vocabularies"]["event"]["rating"]]
    replaced(old, programs=None, item_ids="text", vocabularies={"event": {"rating": floats}})
    index = id_index.build([f"{item}.0" for item in new.items.ids(np.arange(len(new.items.words)))])
    old._arrays = old._arrays | {"item_words": index.words, "item_slots": index.slots}
    model = Model(old)
    for form in NUMBERS.values():
        for request in requests[-5:]:
            asked = written(request, form)
            answer: Scores = model.score(**asked)
            np.testing.assert_array_equal(answer.logit, new.score(**asked).logit)
            assert not answer.unknown and answer.known.all()


def of_a_later_version(params, table, request) -> jax.Array:
    """A program that can be read, and calls what no jax has."""
    shape = jax.ShapeDtypeStruct(request["candidate_row"].shape[:1], jnp.float32)
    return jax.ffi.ffi_call("of_a_later_version", shape)(table)


def test_programs_that_do_not_run_here_are_refused_when_the_store_is_opened(movies, tmp_path):
    root = Path(shutil.copytree(movies.store, tmp_path / "store"))
    version = store.open_current(root)
    arguments = Model(version)._nothing(64)
    check = jax_export.DisabledSafetyCheck.custom_call("of_a_later_version")
    later = jax.jit(of_a_later_version)
    broken = jax_export.export(later, platforms=("cpu",), disabled_checks=[check])
    with Service(root, poll_seconds=60, sizes=()) as service:
        with store.writing(root) as following:
            shutil.copytree(version.folder, following)
            (following / store.MANIFEST).unlink()
            (following / programs.file_name(64)).write_bytes(broken(*arguments).serialize())
            own = ("format", "version", "files")
            kept = {k: v for k, v in version.manifest.items() if k not in own}
            made = kept["serving"]["programs"] | {"jax": "99.1.0", "jaxlib": "99.1.1"}
            kept["serving"] = kept["serving"] | {"programs": made}
            store.publish(root, kept, keep=3)
        newest = store.open_current(root)
        words = f"by jax 99.1.0 and jaxlib 99.1.1, this is jax {jax.__version__} and jaxlib"
        with pytest.raises(ProgramError, match=re.escape(words)) as error:
            Model(newest, sizes=None)
        message = str(error.value)
        assert "its program for 64 candidates fails" in message and "\n" not in message
        service._sizes = None
        service.refresh()
        assert service.model.name == "0000001" and words in service.problem
    with Service(root, poll_seconds=60) as again:  # started afresh, it serves the one before, too
        assert again.model.name == "0000001" and words in again.problem
        assert len(again.model.score(1, [1], [50]).logit) == 1
    shutil.rmtree(root / "versions" / "0000001")
    assert words in user_error(Service, root)


def test_programs_hold_nothing_that_only_one_version_of_jax_can_read(movies):
    """No open dimension and no custom call: what static programs consist of is kept portable."""
    version = store.open_current(movies.store)
    for size in programs.SIZES:
        program = jax_export.deserialize(bytearray(version.read_bytes(programs.file_name(size))))
        assert "custom_call" not in program.mlir_module() and "?" not in program.mlir_module()
    made = json.loads((version.folder / store.MANIFEST).read_text())["serving"]["programs"]
    assert made == {"sizes": [*programs.SIZES], "calling_convention": 10} | programs.versions()
