"""LoRA's two phases: the second starts where the first ended, and moves the adapters alone."""

import jax
import numpy as np
import pytest

from configs import base, em3_lora
from em3_jax import train
from em3_jax.core import trees
from em3_jax.data.pipeline import batches
from em3_jax.models.lora import merge
from em3_jax.training import experiment
from em3_jax.training.warm_start import warm_start
from tests.conftest import user_error
from tests.small_runs import small_config


def phase_two(planted, init_from, **lora):
    config = base.lora(small_config(planted, data__history_length=16), rank=2)
    config.model.fusion_settings.lora.update(lora)
    config.train.init_from = str(init_from)
    return config


@pytest.fixture(scope="module")
def first(planted, tmp_path_factory):
    directory = tmp_path_factory.mktemp("phases") / "first"
    train.train(small_config(planted).to_dict(), directory)
    return directory


def start(config):
    """(parts, the state that training begins with)."""
    parts = experiment.build(config.to_dict())
    state = parts.program.init()
    if config.train.init_from:
        state = warm_start(state, config.train.init_from, parts.work.dataset.meta["data_hash"])
    return parts, state


def test_the_scores_of_the_first_phase_are_those_of_the_second_before_its_first_step(planted, first):
    plain = small_config(planted, data__history_length=16)
    plain.train.init_from = str(first)
    logits = []
    for config in (plain, phase_two(planted, first)):
        parts, state = start(config)
        logits.append(np.asarray(parts.program.predict(state, parts.work.evaluation("valid")[0])))
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("stop_gradient", ["output", "weights"])
def test_steps_move_the_adapters_and_not_one_frozen_bit(planted, first, stop_gradient):
    parts, state = start(phase_two(planted, first, stop_gradient=stop_gradient))
    before = {name: np.asarray(leaf) for name, leaf in trees.named_leaves(state.params).items()}
    stream = batches(parts.work.source)
    for _ in range(8):  # by eq. 9 a layer learns only once the adapters above it have left zero
        state, _ = parts.program.train_step(state, parts.work.constants, next(stream))
    after = {name: np.asarray(leaf) for name, leaf in trees.named_leaves(state.params).items()}
    same = {name for name in before if np.array_equal(before[name], after[name])}
    fusion = {name for name in before if name.startswith("model/fusion/")}
    adapters = {name for name in fusion if name.endswith(("lora_a", "lora_b"))}
    assert len(adapters) == 2 * sum(name.endswith("/kernel") for name in fusion) > 0
    assert fusion & same == fusion - adapters == {name for name, frozen in parts.program.frozen.items() if frozen}

    # Folded back, the adapters are gone and the scores are the same.
    batch = parts.work.evaluation("valid")[0]
    adapted = np.asarray(parts.program.predict(state, batch))
    plain, _ = start(small_config(planted, data__history_length=16))
    merged = plain.program.predict(state.replace(params=jax.tree.map(np.asarray, merge(state.params))), batch)
    np.testing.assert_allclose(merged, adapted, rtol=0, atol=1e-6)


def test_a_run_of_the_second_phase_says_where_it_starts_and_resumes(planted, first, tmp_path, capsys):
    config = phase_two(planted, first)
    train.train(config.to_dict(), tmp_path / "second")
    assert f"starting from the best of {first}" in capsys.readouterr().out
    train.train(config.to_dict(), tmp_path / "second")
    assert "resuming after step" in capsys.readouterr().out


def test_runs_that_cannot_be_started_from(planted, first, tmp_path):
    config = phase_two(planted, tmp_path / "nowhere")
    assert "run.json" in user_error(lambda: start(config))
    config = phase_two(planted, first)
    config.model.backbone_settings.hidden = (8,)
    assert "same model but for adapters" in user_error(lambda: start(config))
    assert "another dataset" in user_error(lambda: warm_start(start(small_config(planted))[1], first, "x"))


def test_the_shipped_config():
    assert em3_lora.get_config("full").data.history_length == 20
    assert [em3_lora.get_config(arg).data.history_length for arg in ("", "200", "1000")] == [50, 200, 1000]
    assert em3_lora.get_config().model.fusion_settings.lora.rank == 4
