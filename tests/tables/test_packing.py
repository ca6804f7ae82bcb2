"""tables.packing: tables that lie otherwise hold the same numbers, and rows are read and written as where they lie plainly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, lemur
from em3_jax.tables import packing
from em3_jax.training import experiment
from em3_jax.training.checkpoint import Checkpoints

TAILS = [(), (8,), (17,), (48,), (64,), (96,), (128,), (130,), (6, 32)]
FORMS = [packing.Form(lanes=128), packing.Form(lanes=128, singles=False), packing.Form(lanes=16, unit=3)]


def table(length: int, tail: tuple[int, ...], dtype=np.float32) -> np.ndarray:
    return (100 * np.random.default_rng(length).standard_normal((length, *tail))).astype(dtype)


@pytest.mark.parametrize("tail", TAILS, ids=str)
@pytest.mark.parametrize("form", [*FORMS, packing.Form(parts=3), packing.Form(parts=4, lanes=128, unit=4)], ids=str)
def test_a_table_in_another_form_is_the_same_table(form, tail):
    for length in (1, 37, 500):
        array = table(length, tail)
        found = packing.laid_out(jnp.asarray(array), form)
        assert found.shape == array.shape and len(found.lines) % form.unit == 0
        np.testing.assert_array_equal(np.asarray(found), array)


@pytest.mark.parametrize("tail", TAILS, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_rows_are_read_and_written_bit_for_bit(form, tail):
    length = 300
    array, random = table(length, tail), np.random.default_rng(0)
    row = np.unique(np.append(random.integers(0, length, 60), [0, 1, 2, length - 1]))
    row = np.append(row, (1 << 30) + np.arange(5)).astype(np.int32)  # surplus, beyond the table
    there, change = row < length, table(len(row), tail)
    found = packing.laid_out(jnp.asarray(array), form)
    expected = np.zeros_like(change)
    expected[there] = array[row[there]]
    np.testing.assert_array_equal(jax.jit(packing.take)(found, row), expected)
    added, put = array.copy(), array.copy()
    added[row[there]] += change[there]
    put[row[there]] = change[there]
    np.testing.assert_array_equal(np.asarray(jax.jit(packing.add)(found, row, change)), added)
    np.testing.assert_array_equal(np.asarray(jax.jit(packing.put)(found, row, change)), put)


def test_a_row_that_is_put_twice_is_put():
    found = packing.laid_out(jnp.asarray(table(40, (8,))), packing.Form(lanes=128))
    row, value = np.array([3, 3, 4, 20], np.int32), table(4, (8,))
    value[1] = value[0]
    expected = table(40, (8,))
    expected[row] = value
    np.testing.assert_array_equal(np.asarray(packing.put(found, row, value)), expected)


def config_of(task: str, root):
    config = lemur.get_config() if task == "lemur" else base.ranking()
    config.data.root, config.data.features = str(root), ("image", "text")
    config.data.batch_size, config.data.history_length = 32, 6
    if task == "lemur":
        config.model.encoder.update({"width": 16, "layers": 1, "mlp_width": 16, "output": 16})
    return config


@pytest.mark.parametrize("task", ["ranking", "lemur"])
def test_a_run_moves_between_platforms_bit_for_bit(planted, tmp_path, monkeypatch, task):
    """Steps on packed tables, saved; then the same on plain ones, from where the others began."""
    states, losses = [], []
    for name, form in (("plain", packing.PLAIN), ("packed", packing.Form(lanes=128))):
        monkeypatch.setattr(packing, "form_on", lambda mesh, dealt=False, form=form: form)
        parts = experiment.build(config_of(task, planted.root).to_dict())
        state = parts.program.init()
        assert packing.is_table(state.tables["embedding"]) == (name == "packed")
        for k in range(3):
            batch = parts.program.place(parts.work.source[k])
            state, aux = parts.program.train_step(state, parts.work.constants, batch)
        losses.append(float(aux["loss"]))
        checkpoints = Checkpoints(tmp_path / name)
        checkpoints.save("latest", state, {})
        checkpoints.close()
        # Restored into the other form.
        monkeypatch.setattr(packing, "form_on", lambda mesh, dealt=False: packing.Form(lanes=128, singles=False))
        other = experiment.build(config_of(task, planted.root).to_dict())
        restored, _ = Checkpoints(tmp_path / name).restore_latest(other.program.init())
        states.append(jax.device_get(packing.unpacked(restored)))
    assert losses[0] == losses[1]
    jax.tree.map(np.testing.assert_array_equal, *states)
