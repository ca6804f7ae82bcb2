"""plan.contract: every way to break the contract is refused with a line of the source; steps of all tasks keep it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.plan import contract, program, targets
from tests import step_contracts
from tests.conftest import ROOT

pytestmark = pytest.mark.seconds(360)

V, R, W, B = 1 << 12, 64, 8, 4096
HERE = Path(__file__).name


@pytest.fixture(scope="module", autouse=True)
def without_cache():
    """A program from JAX's cache has the source lines of when it was compiled."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def here(needle: str) -> str:
    """The file and the line of it that ends with the needle."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    (number,) = [k for k, line in enumerate(lines, 1) if line.endswith(needle)]
    return f"{HERE}:{number}"


def compiled(function, *arguments, donate=()) -> program.Program:
    return program.read(jax.jit(function, donate_argnums=donate).lower(*arguments).compile().as_text())


def f32(*shape) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def i32(*shape) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def step(table, row, gradient):
    """What a step does to a table, as it should."""
    rows = jnp.take(table, row, axis=0, mode="fill", fill_value=0)
    change = -0.1 * gradient * jnp.tanh(rows)
    return table.at[row].add(change, mode="drop", unique_indices=True, indices_are_sorted=True)


def both(function, *rest, donate=0):
    """The program, and that of a table 8 times as long."""
    return tuple(compiled(function, f32(length, W), *rest, donate=donate) for length in (V, 8 * V))


def test_a_step_that_keeps_the_contract_has_no_breach():
    assert contract.breaches(*both(step, i32(R), f32(R, W)), donated=1) == []


def says(found, rule: str, needle: str) -> bool:
    """Whether some breach names the line, and all are of the rule."""
    return {breach.rule for breach in found} == {rule} and any(here(needle) in str(breach) for breach in found)


def test_a_scatter_in_bf16():
    # CPUs compile it to one in f32; so this is how an accelerator's program has it.
    text = """HloModule scatter, entry_computation_layout={()->bf16[8,2]{1,0}}

FileNames
1 "/somewhere/em3_jax/core/gather.py"

FileLocations
1 {file_name_id=1 function_name_id=1 line=12 end_line=12 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}


%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%a, %b)
}

ENTRY %main (t: bf16[8,2], i: s32[4,1], u: bf16[4,2]) -> bf16[8,2] {
  %t = bf16[8,2]{1,0} parameter(0)
  %i = s32[4,1]{1,0} parameter(1)
  %u = bf16[4,2]{1,0} parameter(2)
  ROOT %s = bf16[8,2]{1,0} scatter(%t, %i, %u), to_apply=%add, metadata={op_name="scatter-add" stack_frame_id=1}
}
"""
    (breach,) = contract.breaches(program.read(text))
    assert breach.rule == "narrow sum" and breach.source == "/somewhere/em3_jax/core/gather.py:12"
    assert "bf16[8, 2]" in breach.what


def test_a_gradient_as_long_as_the_table():
    def long_gradient(table, row, gradient):
        def loss(table):
            return jnp.sum(jnp.take(table, row, axis=0) * gradient)  # long gradient

        return table - 0.1 * jax.grad(loss)(table)

    assert says(contract.breaches(*both(long_gradient, i32(R), f32(R, W))), "grows with the table", "# long gradient")


def test_a_copy_of_the_whole_table():
    def copying(table, row, gradient):
        return step(jnp.roll(table, 1, axis=0), row, gradient)  # whole copy

    assert says(contract.breaches(*both(copying, i32(R), f32(R, W))), "grows with the table", "# whole copy")


def test_a_scatter_that_queues_for_one_row():
    def queueing(values, row):
        return jnp.zeros((V, W)).at[row].add(values)  # queue

    row = np.where(np.arange(B) % 2, 0, np.arange(B)).astype(np.int32) % V
    (scatter,) = contract.contention(queueing, jnp.ones((B, W)), row, platform="gpu")
    assert scatter.updates == B and scatter.most == B // 2 + 1
    assert scatter.breach.rule == "contended scatter" and here("# queue") in str(scatter.breach)
    (even,) = contract.contention(queueing, jnp.ones((B, W)), np.arange(B, dtype=np.int32) % V, platform="gpu")
    assert even.breach is None


def test_a_promise_of_distinct_rows_that_is_broken():
    def promising(values, row):
        return jnp.zeros((V, W)).at[row].add(values, unique_indices=True)  # promise

    (scatter,) = contract.contention(promising, jnp.ones((4, W)), np.array([1, 2, 2, 3]), platform="tpu")
    assert scatter.breach.rule == "repeated index" and here("# promise") in str(scatter.breach)


def test_a_call_of_the_host():
    def calling(table, row, gradient):
        jax.debug.callback(lambda x: None, gradient[0, 0])  # host
        return step(table, row, gradient)

    found = contract.breaches(*both(calling, i32(R), f32(R, W)))
    assert says(found, "host transfer", "# host")


def test_a_number_in_f64():
    with jax.enable_x64(True):

        def wide(table, row, gradient):
            half = gradient.astype(jnp.float64) * 0.5  # f64
            return step(table, row, half.astype(jnp.float32))

        found = contract.breaches(compiled(wide, f32(V, W), i32(R), f32(R, W), donate=0))
    assert {breach.rule for breach in found} == {"f64"} and any(here("# f64") in str(breach) for breach in found)


def test_a_donation_that_is_lost():
    def losing(table, row, gradient):
        return step(table, row, gradient).astype(jnp.float16)  # lost

    (breach,) = contract.breaches(compiled(losing, f32(V, W), i32(R), f32(R, W), donate=0), donated=1)
    assert breach.rule == "lost donation" and here("# lost") in str(breach)


EXCHANGE = """
import json, jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P, NamedSharding
from em3_jax.plan import contract, program
mesh = jax.make_mesh((8,), ("d",), (jax.sharding.AxisType.Auto,))
def grown(table):
    return jax.lax.with_sharding_constraint(jnp.tanh(table), NamedSharding(mesh, P()))  # exchange
def read(rows):
    shape = jax.ShapeDtypeStruct((rows, 8), jnp.float32, sharding=NamedSharding(mesh, P("d")))
    return program.read(jax.jit(grown).lower(shape).compile().as_text())
print(json.dumps([str(one) for one in contract.breaches(read(4096), read(32768))]))
"""


def test_an_exchange_that_grows_with_the_table():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", EXCHANGE], cwd=ROOT, env=os.environ | flags, capture_output=True, text=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert any("exchange grows with the table: all-gather" in line and "<string>:7" in line for line in found), found


@pytest.fixture(scope="module")
def contract_data(tmp_path_factory) -> Path:
    """The folder that `step_contracts` writes its data to, once for all targets of a worker."""
    return tmp_path_factory.mktemp("contracts") / "data"


def check(target: str, names: str, data: Path) -> None:
    """The steps of all tasks, compiled for devices that are not here, wherever their compiler is."""
    targets.find_compilers()
    if target != "queues" and not targets.is_installed(targets.parse(target).platform):
        pytest.skip(f"the compiler for {target} is not installed: make .venv/installed-test")
    command = [sys.executable, "-m", "tests.step_contracts", target, names, str(data)]
    # LLVM comes after all that the contract is of.
    quickly = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quickly, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == names.split(",")
    for name, one in found.items():
        assert one["found"] == [], name


def test_nobody_queues_for_a_row(contract_data):
    """On GPUs and TPUs, whatever the task, the model and its parts."""
    check("queues", ",".join(step_contracts.NAMES), contract_data)


BACKBONES = "din,deepfm,dcnv2,wide_deep,deepctr"


class TestOnCpus:  # a class each, so that workers share them
    def test_steps_keep_the_contract(self, contract_data):
        check("cpu", f"{BACKBONES},ids,lemur,pretraining,freedom,em3,bm3,lightgcn", contract_data)


class TestOnTpus:
    def test_steps_keep_the_contract(self, contract_data):
        check("v5e", f"{BACKBONES},lemur,pretraining,em3", contract_data)


class TestOnSeveralTpus:
    def test_steps_in_blocks_keep_the_contract(self, contract_data):
        """What devices exchange does not grow with tables, too."""
        check("v5e:2x2", "lemur", contract_data)


class TestOnGpus:
    def test_steps_keep_the_contract(self, contract_data):
        check("h100", f"{BACKBONES},lemur,pretraining,em3", contract_data)
