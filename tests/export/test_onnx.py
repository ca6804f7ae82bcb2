"""The ranking model as an ONNX file: the run's logits under onnxruntime for every backbone, or a refusal that names what is
in the way."""

import importlib.util
import json
import sys

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax import train
from em3_jax.export import command, onnx_model, scorer
from em3_jax.export.command import Settings, export
from em3_jax.training import experiment
from tests.conftest import user_error
from tests.small_runs import small_config

pytestmark = [
    pytest.mark.quickly_compiled,
    pytest.mark.skipif(importlib.util.find_spec("jax2onnx") is None, reason="jax2onnx is not installed"),
]


MADE_UP = jax.extend.core.Primitive("made_up")
MADE_UP.def_abstract_eval(lambda x: x)


@pytest.mark.parametrize(
    "backbone, content",
    [
        ("din", "end_to_end"),
        ("deepfm", "none"),
        ("dcnv2", "end_to_end"),
        ("wide_deep", "none"),
        ("deepctr", "end_to_end"),
    ],
)
def test_the_file_gives_the_logits_of_every_backbone(planted, tmp_path, backbone, content):
    """`write_onnx` compares them itself, under onnxruntime; here that it did, and how near they are.

    For any number of candidates it compares one and a half and half as many, too.
    """
    config = small_config(planted, model__backbone=backbone, model__content=content)
    parts = experiment.build(config)
    state, task = parts.program.init(), parts.work.task
    widths = {"content": config.model.fusion_settings.width} if content != "none" else {}
    length = parts.work.builder(planted).history_length
    request = scorer.request_shapes(planted.fields, length, widths, onnx_model.CANDIDATES)
    # Tables begin small: with larger numbers a wrong operation shows.
    table = np.random.default_rng(0).standard_normal(state.tables["embedding"].shape).astype(np.float32)
    facts = onnx_model.write_onnx(tmp_path / "ranker.onnx", task, state.params, table, request)
    assert facts["largest_difference"] < 1e-5
    assert facts["inputs"]["candidate_row"][0] == list(request["candidate_row"].shape)
    assert (tmp_path / "ranker.onnx").stat().st_size > table.nbytes
    facts = onnx_model.write_onnx(tmp_path / "any.onnx", task, state.params, table, request, ["B"])
    assert facts["largest_difference"] < 1e-5 and facts["candidates"] == "candidates"
    assert facts["inputs"]["candidate_row"][0] == ["candidates", *request["candidate_row"].shape[1:]]


@pytest.fixture(scope="module")
def run(planted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "run"
    config = small_config(planted, model__content="none")
    config.train.epochs = 0.2
    train.train(config, folder)
    return folder


def test_a_version_has_the_file_and_says_what_it_takes(run, tmp_path, monkeypatch):
    given = [
        "em3 export",
        "--workdir",
        str(run),
        "--out",
        str(tmp_path / "store"),
        "--format",
        "onnx",
        "--platforms",
        "cpu",
    ]
    monkeypatch.setattr(sys, "argv", given)
    command.main()
    (version,) = (path.parent for path in (tmp_path / "store").rglob("ranker.onnx"))
    facts = json.loads((version / "manifest.json").read_text())["serving"]["onnx"]
    assert facts["candidates"] == 64 and facts["largest_difference"] < 1e-5


@pytest.mark.parametrize(
    "operation, words",
    [
        (MADE_UP.bind, ("jax2onnx cannot write", "made_up")),
        (lambda x: jnp.real(jnp.fft.fft(x.astype(jnp.complex64))), ("onnxruntime cannot run", "complex64")),
    ],
)
def test_an_unknown_operation_is_named(run, tmp_path, monkeypatch, operation, words):
    score = scorer.scorer
    monkeypatch.setattr(onnx_model.scorer, "scorer", lambda *given: lambda *a: operation(score(*given)(*a)))
    said = user_error(export, run, tmp_path / "store", Settings(with_onnx=True, platforms=("cpu",)))
    assert said.startswith("--format onnx: ") and all(word in said for word in words)
    assert not list((tmp_path / "store").glob("*/manifest.json"))


def test_other_logits_are_no_export(run, tmp_path, monkeypatch):
    convert = onnx_model._convert
    shifted = lambda program: jax.make_jaxpr(lambda *a: 1e-2 + jax.extend.core.jaxpr_as_fun(program)(*a)[0])  # noqa: E731
    monkeypatch.setattr(
        onnx_model, "_convert", lambda p, program, shapes, i: convert(p, shifted(program)(*shapes), shapes, i)
    )
    said = user_error(export, run, tmp_path / "store", Settings(with_onnx=True, platforms=("cpu",)))
    assert "off those of the run" in said


def test_without_the_package_it_says_how_to_get_it(monkeypatch, run, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "jax2onnx" else find(name, *a))
    said = user_error(export, run, tmp_path / "store", Settings(with_onnx=True, platforms=("cpu",)))
    assert "pip install --no-deps jax2onnx" in said


def test_a_program_called_operation_by_operation_gives_its_outputs():
    @jax.custom_vjp
    def doubled(x):
        return 2 * x

    doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))

    def program(x):
        chosen = jax.lax.platform_dependent(x, cpu=lambda x: x + 1, default=lambda x: x - 1)
        return doubled(jax.nn.relu(chosen)), jax.jit(jnp.sort)(x)

    x = jnp.asarray(np.random.default_rng(0).standard_normal(9), jnp.float32)
    closed = jax.make_jaxpr(program)(x)
    for found, expected in zip(onnx_model.evaluated(closed.jaxpr, closed.consts, [x]), program(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
