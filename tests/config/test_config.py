"""config and experiment: every mistake in a config is one line that names the key and, where it can, the right one."""

import os
import subprocess
import sys
from typing import NamedTuple

import flax.linen as nn
import pytest

from configs import base
from em3_jax.config import parse, sections
from em3_jax.core.errors import UserError
from em3_jax.models.mlp import MLP
from em3_jax.training import experiment
from tests.conftest import ROOT


class Settings(NamedTuple):
    width: int
    dropout: float
    name_of_it: str = "x"


def test_call_passes_the_section_and_what_is_given():
    assert sections.call(Settings, {"width": 3}, "config.model", dropout=0.5) == Settings(3, 0.5)
    assert sections.call(Settings, {"width": 3, "dropout": 0.1, "name_of_it": "y"}, "config.model").name_of_it == "y"


@pytest.mark.parametrize(
    "key,message",
    [
        ("dropuot", r"config\.model\.dropuot: unknown key; did you mean 'dropout'\?"),
        ("zzz", r"config\.model\.zzz: unknown key; known: dropout, name_of_it, width"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(key, message):
    with pytest.raises(UserError, match=message):
        sections.call(Settings, {"width": 3, "dropout": 0.1, key: 1}, "config.model")


def test_a_missing_key_is_named():
    with pytest.raises(UserError, match=r"config\.model\.dropout: missing"):
        sections.call(Settings, {"width": 3}, "config.model")


def test_a_section_cannot_set_what_the_program_gives():
    with pytest.raises(UserError, match=r"config\.model\.width: unknown key"):
        sections.call(Settings, {"width": 3, "dropout": 0.1}, "config.model", width=5)


@pytest.mark.parametrize("key", ["parent", "name"])
def test_a_section_cannot_set_what_linen_adds_to_modules(key):
    assert isinstance(sections.call(MLP, {"hidden": (8,), "outputs": 1}, "config.model"), nn.Module)
    with pytest.raises(UserError, match=f"{key}: unknown key"):
        sections.call(MLP, {"hidden": (8,), "outputs": 1, key: None}, "config.model")


def test_a_function_with_open_ended_settings_checks_them_itself():
    def function(content, **settings):
        return content, settings

    assert sections.call(function, {"content": 1, "other": 2}, "config.model") == (1, {"other": 2})
    with pytest.raises(UserError, match=r"config\.model\.content: missing"):
        sections.call(function, {"other": 2}, "config.model")


def test_differences_are_listed_by_their_full_name():
    old = {"seed": 0, "model": {"dropout": 0.1, "cic": {"weight": 0.1}}, "data": {"root": "a"}}
    new = {"seed": 0, "model": {"dropout": 0.2, "cic": {"weight": 0.1, "width": 8}}}
    assert sections.differences(old, new) == [
        "config.data: {'root': 'a'} -> None",
        "config.model.cic.width: None -> 8",
        "config.model.dropout: 0.1 -> 0.2",
    ]
    assert sections.differences(old, old) == []


# A whole experiment.


def make_config(planted) -> dict:
    settings = base.ranking()
    settings.data.root = str(planted.root)
    settings.data.features = ("image", "text")
    settings.data.batch_size = settings.eval.batch_size = 64
    return settings.to_dict()


MISTAKES = {
    "a section too many": (("modle",), {}, r"config\.modle: unknown key; did you mean 'model'\?"),
    "unknown data key": (
        ("data", "batchsize"),
        8,
        r"config\.data\.batchsize: unknown key; did you mean 'batch_size'\?",
    ),
    "a key of another section": (("heads",), {}, r"config\.heads: unknown key; did you mean config\.model\.heads or "),
    "unknown model key": (("model", "fusoin"), "mean", r"config\.model\.fusoin: unknown key; did you mean 'fusion'\?"),
    "unknown fusion key": (
        ("model", "fusion_settings", "head"),
        2,
        r"config\.model\.fusion_settings\.head: .*did you mean 'heads'\?",
    ),
    "unknown CIC key": (("model", "cic", "alpha"), 0.1, r"config\.model\.cic\.alpha: unknown key"),
    "unknown optimizer key": (("optim", "lr"), 0.1, r"config\.optim\.lr: unknown key"),
    "unknown table key": (("tables", "width_"), 8, r"config\.tables\.width_: unknown key; did you mean 'width'\?"),
    "unknown eval key": (("eval", "metrics"), "auc", r"config\.eval\.metrics: unknown key; did you mean 'metric'\?"),
    "unknown mesh key": (("mesh", "date"), 1, r"config\.mesh\.date: unknown key; did you mean 'data'\?"),
    "content": (("model", "content"), "end2end", r"config\.model\.content='end2end'.*did you mean 'end_to_end'\?"),
    "attention score": (
        ("model", "backbone_settings", "attention_score"),
        "mpl",
        r"config\.model\.backbone_settings\.attention_score='mpl'.*'mlp'",
    ),
    "content score": (
        ("model", "content_score"),
        "cosin",
        r"config\.model\.content_score='cosin'.*did you mean 'cosine'\?",
    ),
    "heads": (
        ("model", "fusion_settings", "heads"),
        5,
        r"config\.model\.fusion_settings: 5 heads do not divide the width 64",
    ),
    "CIC over": (("model", "cic", "over"), "rows", r"config\.model\.cic\.over.*items or samples"),
    "CIC field": (("model", "cic", "id_fields"), ("items",), r"config\.model\.cic\.id_fields:.*'items'.*'item'"),
    "floor field": (("data", "unknown_floor"), {"usr": 0.1}, r"config\.data\.unknown_floor\.usr:.*'user'"),
    "feature set": (("data", "features"), ("txet",), r"features/txet: no such feature set.*image, text"),
    "no features": (("data", "features"), (), r"config\.data\.features is empty"),
    "placement": (("data", "placement"), "gpu", r"config\.data\.placement='gpu'.*auto, device or host"),
    "precision": (("model", "precision"), "fp16", r"config\.model\.precision='fp16'.*f32 or bf16"),
    "order": (
        ("data", "order"),
        "random",
        r"config\.data\.order='random'.*shuffled, chronological, by_item or by_group",
    ),
    "no such folder": (("data", "root"), "/no/such/folder", r"/no/such/folder: no such dataset folder"),
    "row optimizer": (("tables", "optimizer"), "sgd", r"config\.tables\.optimizer='sgd'.*lazy_adam"),
    "multiplier": (("optim", "multipliers"), (("fussion", 0.1),), r"config\.optim\.multipliers: .*'fussion'"),
    "batch of no rows": (("data", "batch_size"), 0, r"config\.data\.batch_size=0"),
    "empty mesh": (("mesh", "model"), 0, r"config\.mesh\.model=0"),
    "mesh too large": (("mesh", "data"), 4096, r"config\.mesh: 4096 x 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_config_is_one_line_that_names_it(planted, mistake):
    path, value, message = MISTAKES[mistake]
    settings = section = make_config(planted)
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    with pytest.raises(UserError, match=message) as error:
        experiment.build(settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "path",
    [
        ("tables",),
        ("data", "order"),
        ("model", "content"),
        ("model", "fusion_settings"),
        ("model", "cic"),
        ("model", "cic", "weight"),
        ("model", "backbone_settings", "hidden"),
        ("optim", "clip_norm"),
        ("tables", "l2"),
        ("eval", "metric"),
        ("mesh", "data"),
    ],
    ids=".".join,
)
def test_what_a_config_leaves_out_is_as_the_schema_has_it(planted, path):
    settings = section = make_config(planted)
    for key in path[:-1]:
        section = section[key]
    left_out = section.pop(path[-1])
    assert parse.checked(settings) == make_config(planted), f"config.{'.'.join(path)} is {left_out} by default"


def test_a_config_without_mistakes_builds(planted):
    parts = experiment.build(make_config(planted))
    assert parts.work.source.steps(1.0) == 3200 // 64
    assert set(parts.work.constants) == {"image", "text"}


@pytest.mark.parametrize("section", ["data", "eval"])
def test_a_batch_that_the_mesh_does_not_divide_is_a_user_error(planted, section):
    """On four devices: one line on stderr, no stack trace, exit code 2."""
    program = f"""
from em3_jax import cli
from em3_jax.training import experiment
config = {make_config(planted)!r}
config[{section!r}]["batch_size"] = 66
cli.run(lambda: experiment.build(config))
"""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.strip() == (
        f"error: config.{section}.batch_size=66 does not divide over 4 devices; use 64 or another multiple of 4"
    )
