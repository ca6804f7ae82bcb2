"""tables.slabs: content of items as TPUs read it at the cost of what is read; the same numbers."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.core import sharding
from em3_jax.data.format import FeatureSet
from em3_jax.features import placement
from em3_jax.features.tokens import standardise
from em3_jax.tables import slabs
from em3_jax.tasks import gathered

I = 21  # noqa: E741
ON_TPU = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform="tpu")]))


def random_tokens(dtype, *tail: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 40, (I, *tail)).astype(dtype)


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8", "int32", "bool"])
@pytest.mark.parametrize("tail", [(6, 768), (1, 768), (3, 5), (1, 1), (77, 1), (77,)])
def test_items_of_slabs_are_what_went_in(tail, dtype, xp):
    tokens = random_tokens(dtype, *tail)
    table = slabs.Slabs(slabs.Slabs.of(xp.asarray(tokens), xp), tail)
    assert table.lines.dtype == tokens.dtype
    count, line = table.lines.shape[1:]
    assert count * max(tokens.itemsize, 2) >= 4 and line % 128 == 0  # the tile of a TPU
    assert count * line < tokens[0].size + 128 * count
    row = np.array([4, 0, 20, 4])
    np.testing.assert_array_equal(slabs.items(table, lambda lines: jnp.asarray(lines)[row]), tokens[row])


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("count", [1, 6, 31, 32])
def test_items_of_bits_are_what_went_in(count, xp):
    mask = np.random.default_rng(0).random((I, count)) < 0.5
    mask[0] = True
    table = slabs.Bits(slabs.Bits.of(xp.asarray(mask), xp), (count,))
    assert table.lines.shape == (I,) and table.lines.dtype == np.int32
    row = np.array([4, 0, 20, 4])
    np.testing.assert_array_equal(slabs.items(table, lambda lines: jnp.asarray(lines)[row]), mask[row])


def test_masks_within_tokens_come_out_of_them():
    """Constant tokens are zeros once standardised, and tokens all the same."""
    tokens = np.concatenate([standardise(random_tokens("float16", 3, 40), np.ones((I, 3), bool)), np.zeros((1, 3, 40))])
    mask = np.random.default_rng(1).random((I + 1, 3)) < 0.5
    mask[I] = True
    found, valid = slabs.Within.parted(slabs.Within.marked(jnp.asarray(tokens, jnp.float16), mask))
    np.testing.assert_array_equal(valid, mask)
    np.testing.assert_array_equal(found, np.where(mask[..., None], tokens, 0))


def test_what_lies_how():
    of = lambda *tail, dtype="float16", mesh=ON_TPU: slabs.kind_on(mesh, np.zeros((2, *tail), dtype))  # noqa: E731
    for tail in ((6, 768), (1, 768), (2, 100), (8, 64), (12, 128)):
        assert of(*tail) is slabs.Slabs
    for tail in ((2, 768), (4, 128), (8, 768), (16, 768)):
        assert of(*tail) is None
    assert of(2, 256, dtype="uint8") is slabs.Slabs and of(4, 256, dtype="uint8") is None
    assert of(6, dtype=bool) is slabs.Bits and of(33, dtype=bool) is slabs.Slabs
    here = sharding.make_mesh(1, 1)
    assert of(6, 768, mesh=here) is None and of(6, dtype=bool, mesh=here) is None


@pytest.mark.parametrize("items", [1, 8, I])
def test_a_step_reads_the_same_tokens_from_slabs(monkeypatch, items):
    """Standardised in blocks, which overlap in the end, and looked up."""
    monkeypatch.setattr(placement, "_BLOCK", 8)
    tokens, mask = random_tokens("float16", 3, 40)[:items], np.arange(items * 3).reshape(items, 3) % 4 > 0
    pixels = random_tokens("uint8", 1, 300)[:items]
    sets = [FeatureSet("text", tokens, mask, {}), FeatureSet("raw_image", pixels, mask[:, :1], {})]
    batch, mesh = {"item_id": jnp.array([items - 1, 0, items // 2, 0])}, sharding.make_mesh(1, 1)
    plain = gathered(None, placement.to_device(sets, mesh), batch)
    as_on_tpu = slabs.kind_on
    monkeypatch.setattr(slabs, "kind_on", lambda mesh, array: as_on_tpu(ON_TPU, array))
    tables = placement.to_device(sets, mesh)
    kinds = [tuple(map(type, pair)) for pair in tables.values()]
    assert kinds == [(slabs.Slabs, slabs.Within), (slabs.Slabs, slabs.Bits)]
    found = jax.jit(lambda tables: gathered(None, tables, batch))(tables)
    jax.tree.map(np.testing.assert_array_equal, found.tokens, plain.tokens)
    jax.tree.map(np.testing.assert_array_equal, found.tokens_mask, plain.tokens_mask)


def test_memory_that_slabs_take_counts():
    """A token of 64 numbers fills a slab of 256."""
    assert slabs.bytes_on(ON_TPU, np.zeros((1000, 1, 64), "float16")) == 1000 * 256 * 2
    assert slabs.bytes_on(ON_TPU, np.zeros((1000, 6, 768), "float16")) == 1000 * 6 * 768 * 2
    assert slabs.bytes_on(ON_TPU, np.zeros((1000, 8, 768), "float16")) == 1000 * 8 * 768 * 2
