"""Parts from a user's own file: they train and are evaluated like the library's, and mistakes in them are one line."""

import re
import textwrap

import numpy as np
import pytest

from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.config import registry, sections
from em3_jax.training import experiment
from tests.conftest import ROOT, user_error
from tests.small_runs import small_config

pytestmark = pytest.mark.quickly_compiled

FILE = """
import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.models.fusion import FusionSettings


class MyFusion(nn.Module):
    settings: FusionSettings

    @nn.compact
    def __call__(self, tokens, mask, *, train):
        best = [jnp.where(mask[name][..., None], x, -1e9).max(axis=1) for name, x in sorted(tokens.items())]
        return nn.Dense(self.settings.width)(jnp.maximum(jnp.concatenate(best, axis=-1), -5.0))


class MyBackbone(nn.Module):
    settings: object

    @nn.compact
    def __call__(self, features, *, train):
        candidate = features.items[features.candidate].reshape(len(features.candidate), -1)
        return nn.Dense(1)(jnp.concatenate([candidate, *features.content], axis=-1))[:, 0], {}


class MyScore(nn.Module):
    hidden: int

    def __call__(self, target, slots):
        return -jnp.square(slots - target[:, None]).sum(axis=-1)


def my_loss(logits, labels, *, weights):
    return jnp.sum(weights * jnp.square(jax.nn.sigmoid(logits) - labels)) / jnp.sum(weights)


class FlatFusion(nn.Module):
    settings: FusionSettings

    @nn.compact
    def __call__(self, tokens, mask, *, train):
        return jnp.zeros(3)


value = 3
"""


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FILE, "utf-8")
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n", "utf-8")
    (tmp_path / "faulty.py").write_text(textwrap.dedent("class A(:\n  pass\n"), "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def my_config(planted):
    settings = small_config(planted)
    settings.model.fusion = "mine:MyFusion"
    settings.model.backbone = "mine:MyBackbone"
    settings.model.content_score = "mine:MyScore"
    settings.model.loss = "mine:my_loss"
    return settings


def test_a_run_with_own_parts_learns_and_is_evaluated(planted, in_folder):
    settings = my_config(planted)
    built = experiment.build(settings.to_dict())
    names = {name.split("/")[1] for name in built.program.frozen if name.startswith("model/")}
    assert names == {"fusion", "backbone"}  # MyScore has no parameters
    train.train(settings.to_dict(), in_folder / "run")
    report = evaluation.evaluate(in_folder / "run", "test")["slices"]["all"]
    assert report["auc"] > 0.5
    logits = np.load(in_folder / "run" / "eval_test_logits.npy")
    assert np.isfinite(logits).all() and logits.std() > 0

    (in_folder / "mine.py").write_text(FILE.replace("1e9", "1e8"), "utf-8")
    changed = "mine.py has changed since it was trained"
    assert changed in user_error(evaluation.evaluate, in_folder / "run", "test")
    assert changed in user_error(train.train, settings.to_dict(), in_folder / "run")


def test_the_own_loss_is_the_one_that_is_minimised(planted, in_folder):
    built = experiment.build(my_config(planted).to_dict())
    state, batch = built.program.init(), built.work.source[0]
    probability = 1 / (
        1 + np.exp(-np.asarray(built.program.predict(state, batch), np.float64))
    )  # no dropout in this config
    _, aux = built.program.train_step(state, built.work.constants, batch)
    assert float(aux["ranking_loss"]) == pytest.approx(np.mean((probability - batch["label"]) ** 2), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:MyFusion", "config.model.fusion=nowhere:...: no file nowhere.py here and no such module"),
        ("mine:MyFusoin", "has no class or function 'MyFusoin'; did you mean 'MyFusion'?"),
        ("mine:value", "has no class or function 'value'"),
        ("broken:A", "No module named 'nothing_of_that_name', which it imports; install it"),
        ("faulty:A", "SyntaxError"),
        ("mine:FlatFusion", "the fusion module gives shape (3,), not [S, D]"),
        ("fq_former_", "or my_file:MyPart for your own; did you mean 'fq_former'?"),
    ],
)
def test_mistakes_in_own_parts_are_one_line(planted, in_folder, name, message):
    settings = small_config(planted)
    settings.model.fusion = name
    assert message in user_error(lambda: experiment.build(settings.to_dict()))


def test_the_example_of_the_docs_trains(planted, in_folder):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/models.md").read_text("utf-8"), re.DOTALL)
    (example,) = [block for block in blocks if "class GatedFusion" in block]
    assert len(example.splitlines()) <= 22
    (in_folder / "my_fusion.py").write_text(example, "utf-8")
    settings = small_config(planted)
    settings.model.fusion = "my_fusion:GatedFusion"
    assert train.train(settings.to_dict(), in_folder / "gated")["best_value"] > 0.5


def test_a_module_on_the_path_is_found_as_well():
    assert sections.part("config.model.backbone", "em3_jax.models.backbones.din:DIN", {}) is registry.BACKBONES["din"]
