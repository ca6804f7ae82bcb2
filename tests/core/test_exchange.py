"""exchange: rows that travel in bf16 are rounded once, and their gradients are sums in f32."""

import json
import subprocess
import sys

import pytest

from tests.compilation import on_devices
from tests.conftest import ROOT

SENT = """
import json, re, sys
import jax, jax.numpy as jnp, numpy as np
from em3_jax.core import exchange, sharding
devices, names, width, vocabulary = int(sys.argv[1]), 64, 8, 96
mesh = sharding.make_mesh(devices, 1)
random = np.random.default_rng(0)
share = 1 / np.arange(1, vocabulary + 1)
# Each device names the most frequent rows, and what else its examples happen to have.
named = [np.union1d(np.arange(8), random.choice(vocabulary, names, p=share / share.sum())) for _ in range(devices)]
most = max(np.bincount(ids % devices, minlength=devices).max() for ids in named)
asked = np.full((devices, devices, most), exchange.NONE, np.int32) + np.arange(devices, dtype=np.int32)[:, None]
for block, ids in zip(asked, named):
    for owner in range(devices):
        mine = ids[ids % devices == owner]
        block[owner, : len(mine)] = mine
table = random.standard_normal((devices, vocabulary, width)).astype(np.float32)
weight = np.abs(random.standard_normal((devices * devices * most, width))).astype(np.float32)
room = vocabulary // devices + 2
def loss(values, dtype):
    route = exchange.routes(mesh, {"row": asked.reshape(-1)}, {"row": room})["row"]
    found = exchange.hand_out(mesh, route, values, dtype=dtype)
    return jnp.sum(found.astype(jnp.float32) * weight), (found, route.owned)
values = random.standard_normal((devices * room, width)).astype(np.float32)
differentiated = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
result = {}
for name, dtype in (("f32", None), ("bf16", jnp.bfloat16)):
    gradient, (found, owned) = differentiated(values, dtype)
    result[name] = np.asarray(gradient), np.asarray(found, np.float32)
    text = differentiated.lower(values, dtype).as_text()
    result[name] += (sorted(re.findall(r"all_to_all.*-> tensor<(?:\\d+x)*(\\w+)>", text)), str(found.dtype))
owned = np.asarray(owned).reshape(devices, room)
count = np.zeros((devices, room))
for ids in asked.reshape(-1, devices, most):
    for owner in range(devices):
        count[owner] += np.isin(owned[owner], ids[owner] // devices)
often = (count == devices).ravel()
exact, got = result["f32"][0][often], result["bf16"][0][often]
print(json.dumps({
    "often": int(often.sum()), "apart": float(np.abs(got / exact - 1).max()),
    "is_rounded": bool((result["bf16"][1] == np.asarray(jnp.asarray(result["f32"][1]).astype(jnp.bfloat16), np.float32)).all()),
    "is_there": float(np.abs(result["f32"][1]).max()), "travels": {name: one[2:] for name, one in result.items()},
    "of_gradient": str(result["bf16"][0].dtype),
}))
"""


@pytest.mark.parametrize("devices", [2, 8])
def test_rows_and_gradients_travel_in_the_type_they_are_read_in(devices):
    """What all devices name adds up as in f32, but for one rounding of each device's part."""
    done = subprocess.run(
        [sys.executable, "-c", SENT, str(devices)],
        cwd=ROOT,
        env=on_devices(devices),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["travels"] == {
        "f32": [["f32", "f32", "i32"], "float32"],
        "bf16": [["bf16", "bf16", "i32"], "bfloat16"],
    }
    assert found["is_rounded"] and found["is_there"] > 1
    assert found["often"] >= 8 and 0 < found["apart"] <= 2**-8 and found["of_gradient"] == "float32"
