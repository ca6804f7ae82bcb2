"""Streams that publish: chains of deltas are what the trainer held, bit for bit, whoever is killed; items are cached by rules."""

import dataclasses
import os
import types
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax import train
from em3_jax.export import cached_items, publisher
from em3_jax.export import command as export
from em3_jax.serving import deltas, store
from em3_jax.serving.version import Version
from tests.training.test_online import config

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(60)]

FAST = {"stream.publish_platforms": ("cpu",), "stream.publish_every": 3, "stream.publish_keep": 100}

RULES = {"stream.hot_share": 1.0, "stream.refresh_cold": 1, "stream.publish_whole": 4, "stream.most_windows": 5}


def publishing(root, store_, model="lemur", **changes) -> dict:
    return config(root, model, **FAST | {"stream.publish": str(store_)} | changes).to_dict()


class Published(NamedTuple):
    """A stream of five windows that has published.

    Attributes:
      run, store: its folders.
      held: version -> its arrays and files, as the trainer held them.
      given: what each call of `publish` was given.
      parts: of the run.
    """

    run: Path
    store: Path
    held: dict
    given: list
    parts: object


@pytest.fixture(scope="module")
def published(planted, tmp_path_factory) -> Published:
    folder, held, given, parts = tmp_path_factory.mktemp("published"), {}, [], []

    class Watched(publisher.Publisher):
        def begin(self, of):
            parts.append(of)
            super().begin(of)

        def publish(self, state, row, builder, learnt=None):
            given.append((jax.tree.map(jnp.copy, state), row, builder))
            super().publish(state, row, builder, learnt)
            arrays, files, _ = self._content(state, row, builder, learnt, self._version)
            held[self._version.name] = arrays | files

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(publisher, "Publisher", Watched)
        train.train(publishing(planted.root, folder / "store", **RULES), folder / "run")
    return Published(folder / "run", folder / "store", held, given, parts[0])


def same(version: Version, arrays: dict) -> None:
    found = version.arrays | version.files
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        if isinstance(array, bytes):
            assert found[name] == array, name
        else:
            assert found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes(), name


def test_every_chain_of_deltas_is_what_the_trainer_held(published):
    root, held = published.store, published.held
    names = store.version_names(root)
    assert len(names) == len(held) > 8
    whole = [name for name in names if store.whole_folder(root, name)]
    assert whole == [names[0], *names[4::4]]  # each fourth delta was compacted
    chain = Version(root / "versions" / names[0], verify=True)
    for name in names:
        if name != names[0]:
            chain = deltas.Delta(root / "versions" / name).applied_to(chain)
        same(chain, held[name])
        late = store.open_version(root, name, verify=True)  # from the nearest whole one
        same(late, held[name])
        assert late.checksum == chain.checksum
    assert len({store.open_version(root, name).checksum for name in names}) == len(names)


def test_the_newest_version_is_the_export_of_its_checkpoint(published, tmp_path):
    """But for the rows of ids: the export knows what the whole log shows, the stream what it has trained on."""
    directory, root = published.run, published.store
    settings = export.Settings(checkpoint="newest", batch_size=cached_items.BATCH, platforms=("cpu",))
    export.export(directory, tmp_path / "whole", settings)
    expected, found = store.open_current(tmp_path / "whole"), store.open_current(root)
    assert set(found.arrays) == {*expected.arrays, "content_step"}
    of_counts = {name for name in expected.arrays if name.endswith("_rows") or "_lookup." in name}
    same_names = {*expected.arrays, "params.npz"} - of_counts
    assert {"table", "looked_up.content", "looked_up.bank", "params.npz"} < same_names and len(of_counts) == 3
    for name in same_names:
        one, other = ((version.arrays | version.files)[name] for version in (expected, found))
        assert bytes(one) == bytes(other), name


class Killed(BaseException):
    pass


class AtOnce:
    """In place of a thread: what it does dies with the process."""

    def __init__(self, target, args, daemon):
        self.start = lambda: target(*args)

    def join(self):
        pass

    def is_alive(self):
        return False


def test_killed_at_any_write_and_begun_again_the_store_is_the_same(published, tmp_path, monkeypatch):
    """A writer dies before or after some renaming of a file or folder; the next goes on some steps earlier."""
    config, random = published.parts.config, np.random.default_rng(0)
    own = dataclasses.replace(config.stream, publish=str(tmp_path / "store"))
    left, after, deaths, first = [0], [False], 0, 0

    class Os:
        def __getattr__(self, name):
            return getattr(os, name)

        def replace(self, *args):
            left[0] -= 1
            if left[0] == 0 and not after[0]:
                raise Killed
            os.replace(*args)
            if left[0] == 0:
                raise Killed

    monkeypatch.setattr(store, "os", Os())
    monkeypatch.setattr(publisher, "threading", types.SimpleNamespace(Thread=AtOnce))
    for number in range(8):
        left[0], after[0] = (int(random.integers(1, 10)), bool(number % 2)) if number < 7 else (1 << 30, False)
        writer = publisher.Publisher(config, own, published.run)
        try:
            writer.begin(published.parts)
            for k in range(first, len(published.given)):
                writer.publish(*published.given[k])
                first = max(k - 3, 0)  # the last checkpoint may be older than the last version
            writer.close()
        except Killed:
            deaths += 1
    assert deaths >= 5
    names = store.version_names(published.store)
    assert store.version_names(own.publish) == names and store.current_name(own.publish) == names[-1]
    for name in names:
        found, expected = (store.open_version(Path(root), name) for root in (own.publish, published.store))
        assert found.checksum == expected.checksum
    of_both = [[name for name in names if store.whole_folder(Path(r), name)] for r in (own.publish, published.store)]
    assert of_both[0] == of_both[1]


def test_items_are_made_anew_by_age_where_they_are_hot_and_with_their_content_where_they_are_not(published):
    """Section 3.5: rules in place of one interval for all."""
    parts = published.parts
    shown = np.zeros(parts.work.dataset.num_items, np.int64)
    shown[:20] = np.arange(20, 0, -1)  # a tenth of the shown ones are items 0 and 1
    rules = dataclasses.replace(parts.config.stream, hot_share=0.1, refresh_hot=5, refresh_cold=0)
    cache = cached_items.CachedItems(parts, rules, None)
    due = lambda step, written=None: cache.due(step, shown, written).tolist()  # noqa: E731
    assert len(due(3)) == len(shown)  # all are new
    cache._step[:] = 3
    assert due(7) == [] and due(8) == [0, 1] and due(100) == [0, 1]
    written = np.full(len(shown), -1)
    written[[4, 9]] = 2, 3  # before the version of step 3, and after it
    assert due(7, written) == [9]
    cold = cached_items.CachedItems(parts, dataclasses.replace(rules, refresh_cold=30), None)
    cold._step[:] = 3
    assert cold.due(33, shown, None).tolist() == list(range(len(shown))) and cold.due(32, shown, None).tolist() == [
        0,
        1,
    ]
