"""Parts from a user's own file: they train and are evaluated like the library's, and mistakes in them are one line."""

import importlib
import re
import textwrap

import numpy as np
import optax
import pytest

from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.config import recipes, registry, sections
from em3_jax.models.attention import MeanScore
from em3_jax.training import experiment, rundir
from tests import small_runs
from tests.conftest import ROOT, user_error
from tests.small_runs import small, small_config

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


def test_objects_are_their_texts(planted, in_folder, monkeypatch):
    """A run of classes and functions is a run of their names, and what has no name is refused before there is a folder."""
    (in_folder / "my_objects.py").write_text(FILE, "utf-8")  # stays imported, so no other test has that name
    monkeypatch.syspath_prepend(in_folder)
    mine = importlib.import_module("my_objects")
    objects = {
        "fusion": mine.MyFusion,
        "backbone": mine.MyBackbone,
        "content_score": mine.MyScore,
        "loss": mine.my_loss,
    }
    settings = small(planted, train__epochs=0.1, optim__optimizer=optax.scale_by_lion)
    settings["model"] |= objects
    one, other = in_folder / "objects", in_folder / "texts"
    train.train(settings, one)
    settings["optim"]["optimizer"] = "optax:scale_by_lion"
    settings["model"] |= {name: f"my_objects:{part.__name__}" for name, part in objects.items()}
    train.train(settings, other)
    records = [rundir.read(folder) for folder in (one, other)]
    assert records[0]["config"] == records[1]["config"]
    assert set(records[0]["own_files"]) == {"my_objects.py"}
    lines = [small_runs.records(folder) for folder in (one, other)]
    assert lines[0] == lines[1] and lines[0]
    for part in (lambda logits, labels, weights: 0.0, type("Local", (mine.MyFusion,), {})):
        settings["model"]["loss"] = part
        assert "cannot be found again by a name" in user_error(train.train, settings, in_folder / "new")
        assert not (in_folder / "new").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.fusoin", MeanScore, "config.model.fusoin: unknown key; did you mean 'fusion'?"),
        ("model.cic.weight", MeanScore, "config.model.cic.weight=MeanScore: give a number of 0 or more"),
        ("model.content_score", MeanScore(), "give the class, MeanScore, or a function"),
        ("optim.optimizer", optax.lion, "so give optax.scale_by_lion, say, not optax.lion"),
    ],
)
def test_mistakes_with_objects_are_one_line(planted, name, value, message):
    overrides = {"data.root": planted.root, name: value}
    assert message in user_error(lambda: experiment.build(recipes.load_config("em3_synthetic", overrides)))


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
