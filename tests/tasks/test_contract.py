"""What a task says of itself: which abilities it has, and that a task around it has the same."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from em3_jax.tasks import Inputs, Task
from em3_jax.tasks.pretraining.task import PretrainingTask
from em3_jax.tasks.raw import WithEncoders
from em3_jax.tasks.retrieval.task import RetrievalTask
from em3_jax.tasks.wrapped import OnGivenTokens, WrappedTask

ABILITIES = ("uses_content", "embeds", "can_be_served")


@dataclasses.dataclass(frozen=True, eq=False)
class Everything(Task):
    """A task with all abilities, whose methods answer with their names."""

    uses_content = embeds = can_be_served = True

    def init(self, key, inputs):
        return {"init": inputs}

    def loss(self, params, inputs, key, step):
        return "loss", {"inputs": inputs}

    def predict(self, params, inputs):
        return "predict", inputs

    def embed(self, params, inputs):
        return "embed", inputs

    def lookup(self, params, inputs):
        return "lookup", inputs

    def score(self, params, inputs):
        return "score", inputs


def test_a_method_that_a_task_has_not_says_so():
    task = RetrievalTask(nn.Dense(1))
    assert [getattr(task, name) for name in ABILITIES] == [False, False, False]
    for method in (task.embed, task.lookup, task.score):
        with pytest.raises(NotImplementedError, match="RetrievalTask"):
            method({}, None)


def test_pretraining_embeds_and_scores_nothing():
    task = PretrainingTask(nn.Dense(1), 0.1, has_dropout=True)
    assert [getattr(task, name) for name in ABILITIES] == [True, True, False]


def test_no_task_is_without_a_loss():
    with pytest.raises(TypeError, match="abstract"):
        Task()


@pytest.mark.parametrize("wrap", [WrappedTask, OnGivenTokens, lambda task: WithEncoders(task, {})])
def test_a_task_around_another_has_its_abilities_and_its_answers(wrap):
    inner = Everything()
    task, inputs = wrap(inner), Inputs(None, {}, {}, {})
    assert all(getattr(task, name) for name in ABILITIES)
    assert task.loss({}, inputs, None, None) == inner.loss({}, inputs, None, None)
    for name in ("predict", "embed", "lookup", "score"):
        assert getattr(task, name)({}, inputs) == (name, inputs)
    assert task.init(None, inputs)["init"] == inputs


def test_given_tokens_are_taken_as_they_come():
    tokens = {"text": jnp.array([[[1.0, 5.0]]])}
    batch = {"tokens": tokens, "tokens_mask": {"text": jnp.ones((1, 1), bool)}}
    given = OnGivenTokens(Everything()).inputs(None, {}, batch)
    own = Everything().inputs(None, {}, batch)
    assert given.tokens["text"].tolist() == [[[1.0, 5.0]]]
    assert own.tokens["text"][0, 0].tolist() == pytest.approx([-1.0, 1.0], abs=1e-5)


@dataclasses.dataclass(frozen=True, eq=False)
class Doubling(Everything):
    """With settings that have no hash, like sections of a config."""

    settings: dict

    def predict(self, params, inputs):
        return self.settings["factor"] * inputs


def test_a_method_is_compiled_whatever_the_settings_are():
    assert jax.jit(Doubling({"factor": 2}).predict)({}, jnp.ones(2)).tolist() == [2.0, 2.0]
