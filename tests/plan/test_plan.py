"""em3 plan: a page of what a step costs on devices that are not here, and a line for whatever cannot be planned."""

import json
import subprocess
import sys

import pytest

from em3_jax.plan import command, cost, page, program, targets
from tests.conftest import ROOT, user_error

pytestmark = pytest.mark.seconds(120)


def em3_plan(*options: str, **environment: str) -> subprocess.CompletedProcess:
    import os

    command = [sys.executable, "-m", "em3_jax", "plan", *options]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=600)


SMALL = ("--config=configs/em3_synthetic.py", "--batch=64", "--config.data.history_length=5")


def test_a_plan_without_data_and_without_a_device(tmp_path):
    done = em3_plan(*SMALL, "--target=cpu:2", "--rows=100000", f"--json={tmp_path / 'plan.json'}")
    assert done.returncode == 0 and not done.stderr, done.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["devices"] == 2 and plan["examples"] == 64 and plan["sizes"]["table rows"] == 100_352
    # Each device has its half of 100,352 rows of 16 numbers and an accumulator.
    assert plan["memory"]["state"] > 100_352 / 2 * 17 * 4
    assert plan["memory"]["state"] - 100_352 / 2 * 17 * 4 < 4e6  # the dense parameters, with Adam's moments
    assert plan["flops"] > 1e6 and plan["bytes_accessed"] > 1e6 and plan["fits"] is None
    assert {kind for kind, _, _ in plan["collectives"]} >= {"all-to-all", "all-reduce"}
    for words in ("cpu:2: 2 devices", "all-to-all", "em3_jax/", "assumed", "no dataset in"):
        assert words in done.stdout
    assert all(len(line) <= 140 for line in done.stdout.splitlines())


@pytest.mark.parametrize("target", ["v5e:2x2", "h100"])
def test_a_plan_for_an_accelerator(target, tmp_path):
    targets.find_compilers()
    if not targets.is_installed(targets.parse(target).platform):
        pytest.skip(f"the compiler for {target} is not installed: make .venv/installed-test")
    path = tmp_path / "plan.json"
    done = em3_plan(*SMALL, f"--target={target}", f"--json={path}", "--items=100000")
    assert done.returncode == 0 and not done.stderr, done.stderr
    plan = json.loads(path.read_text())
    assert plan["fits"] and 0 < plan["step_seconds"] < 1 and plan["bound_by"] in ("compute", "memory", "exchange")
    assert plan["examples_per_second"] == pytest.approx(64 / plan["step_seconds"])
    # Of 100,000 items, far more than the stand-in has, another in every second of 64 x (1 + 5) slots.
    assert plan["sizes"]["distinct items a step"] == 192
    assert len(plan["items"]) == 5 and all(":" in item["source"] for item in plan["items"])


@pytest.mark.parametrize(
    "target,words",
    [
        ("v9z:2x2", "no such chip; known: "),
        ("h10", "did you mean 'h100'"),
        ("v5e:8", "v5e has 2 axes; write e.g. v5e:2x2"),
        ("v5e:3x3", "the chips of a host are 2x2"),
        ("h100:0", "'0' is no shape"),
        ("cpu:4096", "plans go up to 1,024"),
        ("h100:99999", "plans go up to 1,024"),
        ("v5e:32x32", "no pod of v5e is 32x32; there are 1x1, 2x2, "),
        ("v6e:2x8", "no pod of v6e is 2x8"),
        ("tpu7x:16x8x8", "2,048 devices"),
    ],
)
def test_targets_that_there_are_not(target, words):
    assert words in user_error(lambda: targets.parse(target))


@pytest.mark.parametrize(
    "options,words",
    [
        (("--target=cpu", "--rows=3000000000"), "--rows=3000000000: ids are 32 bits wide"),
        (("--target=cpu", "--distinct=3000000000"), "--distinct=3000000000: ids are 32 bits wide"),
        (("--target=cpu", "--distinct=385"), "the examples of a batch name 384 items at most"),
        (("--target=cpu", "--rows=0"), "--rows=0: give a positive number"),
        (("--target=cpu", "--itms=3"), "--itms=3: no option of em3 plan"),
        (("--target=cpu", "--tokens=image"), "--tokens=image: write name=NxE"),
        (("--target=cpu", "--tokens=foo=4x8"), "config.data.features has no 'foo' without data; it has image, text"),
        (("--target=cpu", "--tokens=image=4x8,image=4x9"), "names image twice"),
        (("--target=cpu", "--items=10", "--distinct=50"), "--distinct=50: is more than --items=10"),
        (("--target=cpu", "--config.data.batch_size=32"), "--config.data.batch_size says otherwise"),
        (("--target=cpu", "--json=nowhere/plan.json"), "--json=nowhere/plan.json: cannot be written"),
        (("--target=cpu", "--json=tests"), "tests: is a folder"),
        (("--target=cpu", "--config.data.batch_sze=3"), "did you mean 'batch_size'"),
        (("--target=cpu", "--config.model.content=raw"), "config.model.encoders: names no encoder"),
    ],
)
def test_what_cannot_be_planned_is_one_line(options, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["em3 plan", *SMALL, *options])
    monkeypatch.setattr(targets, "prepare", lambda target: None)  # JAX is imported already, on one device
    assert words in user_error(command.main)


def test_what_does_not_divide_over_devices_is_one_line():
    done = em3_plan(*SMALL, "--target=cpu:3")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: config.data.batch_size=64 does not divide over 3 devices"), done.stderr


def test_a_chip_of_two_devices_counts_both():
    assert targets.parse("tpu7x:2x2x1").size == 8 and targets.parse("V5E:2X2").size == 4


def test_batches_beyond_all_measure_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["em3 plan", *SMALL[:1], "--target=cpu", "--batch=1000000000"])
    monkeypatch.setattr(targets, "prepare", lambda target: None)
    assert "plans go up to 1,048,576 examples a step" in user_error(command.main)


def test_what_a_compiler_says_before_it_ends_the_process_is_shown():
    done = em3_plan(*SMALL, "--target=cpu", XLA_FLAGS="--xla_no_such_flag=1")
    assert done.returncode not in (0, 2, 3) and "xla_no_such_flag" in done.stderr


@pytest.mark.parametrize("changes", [{"items": 10}, {"items": 1_000_000}, {"distinct": 20}, {"distinct": 300}])
def test_sizes_that_are_given_agree_with_each_other(changes, planted):
    import argparse

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "compiled", lambda target, step, arguments: found.update(at=arguments))
        patch.setattr("em3_jax.plan.report.make", lambda *_, **options: options)
        given = dict.fromkeys(("rows", "items", "batch", "distinct")) | {"tokens": "", "config": SMALL[0][9:]}
        options = {"data.root": str(planted.root), "data.batch_size": "64"}
        made = command.plan(targets.parse("cpu"), None, argparse.Namespace(**given | changes), options)
    batch, rows = found["at"].batch, len(found["at"].state.tables["embedding"])
    named = len(batch["item_id"])
    assert len(batch["row_id"]) >= named, "each item has a row of its own"
    assert named <= max(changes.get("items", named), changes.get("distinct", named)) + 7  # a multiple of 8
    assert rows >= made["items"]


def test_an_extra_that_is_not_installed_and_a_compiler_of_another_version(monkeypatch):
    target = targets.parse("v5e:2x2")
    monkeypatch.setattr(targets, "is_installed", lambda platform: False)
    assert "pip install 'em3_jax[plan]'" in user_error(lambda: targets.check_installed(target))
    monkeypatch.setattr(targets, "is_installed", lambda platform: True)
    version = targets.importlib.metadata.version
    old = lambda package: "0.0.1" if package == "libtpu" else version(package)  # noqa: E731
    monkeypatch.setattr(targets.importlib.metadata, "version", old)
    message = user_error(lambda: targets.check_installed(target))
    assert "libtpu 0.0.1 is installed" in message and "pip install 'libtpu==" in message


TEXT = """HloModule jit_f, input_output_alias={ {0}: (0, {}, may-alias) }, entry_computation_layout={()->f32[8]{0}}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

%rows (p: f32[1000,4], q: s32[8,1]) -> f32[8,4] {
  %p = f32[1000,4]{1,0} parameter(0)
  %q = s32[8,1]{1,0} parameter(1)
  ROOT %g = f32[8,4]{1,0} gather(%p, %q), offset_dims={1}, slice_sizes={1,4}, metadata={op_name="jit(f)/gather"}
}

ENTRY %main (t: f32[1000,4], i: s32[8,1], w: f32[4,2]) -> (f32[8,2], f32[16]) {
  %t = f32[1000,4]{1,0} parameter(0)
  %i = s32[8,1]{1,0} parameter(1)
  %w = f32[4,2]{1,0} parameter(2)
  %r = f32[8,4]{1,0} fusion(%t, %i), kind=kLoop, calls=%rows
  %d = f32[8,2]{1,0} dot(%r, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %a = f32[16]{0} all-gather(%d), channel_id=1, dimensions={0}
  ROOT %o = (f32[8,2]{1,0}, f32[16]{0}) tuple(%d, %a)
}
"""


def test_a_program_is_read_from_its_text():
    read = program.read(TEXT)
    assert read.entry == "main" and read.aliases == {0}
    kernels = {one.name: one for one, _ in read.kernels()}
    assert list(kernels) == ["r", "d", "a"]
    # Of what is gathered from, the rows: 8 x 4 f32 in and out, and 8 positions.
    assert cost.bytes_moved(read, kernels["r"]) == 2 * 8 * 4 * 4 + 8 * 4
    assert cost.flops(read, kernels["d"]) == 2 * 8 * 2 * 4
    (collective,) = read.collectives()
    assert (collective.collective, program.exchanged(collective)) == ("all-gather", 64)


EXCHANGES = """HloModule jit_f, entry_computation_layout={()->f32[8]{0}}

ENTRY %main (x: f32[16,8]) -> f32[8] {
  %x = f32[16,8]{1,0} parameter(0)
  %a = f32[16,8]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1}}, to_apply=%add
  %b = (bf16[4,2]{1,0}, s32[3]{0}) all-reduce(%x, %x), channel_id=2
  %c = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), dimensions={0}
  %d = f32[8]{0} all-gather-done(%c)
  %e = pred[] all-reduce(%x)
  ROOT %f = f32[100]{0} fusion(%a), kind=kLoop, calls=%all-reduce.1
}
"""


def test_exchanges_are_read_from_the_text():
    read = program.read(EXCHANGES)
    sizes = [(one.collective, program.exchanged(one)) for one in read.collectives()]
    assert sizes == [("all-reduce", 512), ("all-reduce", 16 + 12), ("all-gather", 32), ("all-reduce", 1)]
    assert program.exchanges(read) == {"all-reduce": (3, 541), "all-gather": (1, 32)}


def test_sizes_in_words():
    assert [page.size(count) for count in (5, 1500, 2.5e6, 7e12)] == ["5 B", "1.5 kB", "2.5 MB", "7,000.0 GB"]
