"""processes: two of them train as one does, agree or are refused, and leave with a message when one is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from em3_jax import train
from em3_jax.config.schema.course import Mesh
from em3_jax.core.lock import Lock
from em3_jax.training import processes
from tests.compilation import on_devices
from tests.conftest import ROOT, user_error
from tests.training.test_sharding import lemur_config, ranking_config

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(130)]

WAIT = 600  # on a machine that others keep busy; what has ended is not waited for


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@pytest.fixture
def start():
    """Starts `train.py` of a resolved config, as number `number` of two processes; none outlives its test."""
    started = []

    def run(config: dict, workdir, number: int, port: int, *options: str, **more) -> subprocess.Popen:
        started.append(_process(config, workdir, number, port, *options, **more))
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:  # the test has failed
            subprocess.run(["pkill", "-KILL", "-P", str(process.pid)])
            process.kill()


def _process(config: dict, workdir, number: int, port: int, *options: str, devices: int = 1) -> subprocess.Popen:
    file = workdir.parent / "config.py"
    file.write_text(
        "import json\nfrom ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict(json.loads({json.dumps(json.dumps(config))}))\n"
    )
    mesh = {"coordinator": f"127.0.0.1:{port}", "processes": 2, "process_id": number, "heartbeat_seconds": 10}
    command = [sys.executable, "train.py", f"--config={file}", f"--workdir={workdir}"]
    command += [f"--config.mesh.{name}={value}" for name, value in mesh.items()]
    return subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        env=on_devices(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ends(*started: subprocess.Popen) -> list[tuple[int, str, str]]:
    """(exit code, stdout, last line of stderr) of each."""
    results = []
    for process in started:
        out, err = process.communicate(timeout=WAIT)
        results.append((process.returncode, out, (err.strip().splitlines() or [""])[-1]))
    return results


def wait_for(path, *processes: subprocess.Popen) -> None:
    """Until the file is there, as long as the processes that are to write it live."""
    since = time.monotonic()
    while not path.exists():
        assert all(process.poll() is None for process in processes), ends(*processes)
        assert time.monotonic() - since < WAIT, f"{path} has not come"
        time.sleep(0.1)


def losses(workdir) -> dict[int, float]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


@pytest.fixture(scope="module")
def config(planted) -> dict:
    settings = ranking_config(planted.root)
    settings["model"]["cic"]["negatives"] = 0  # drawn ones depend on the order of the items
    settings["train"] |= {"epochs": 0.2, "eval_every": 10, "log_every": 5}
    return settings


@pytest.fixture(scope="module")
def ids_alone(config) -> dict:
    """Where only the end of processes matters: JAX keeps the programs of the first alone, the other compiles anew each time."""
    return config | {"model": config["model"] | {"content": "none"}, "data": config["data"] | {"features": ()}}


def longer(config: dict, epochs: float) -> dict:
    return config | {"train": config["train"] | {"epochs": epochs}}


@pytest.mark.parametrize("placement,devices", [("device", 1), ("host", 2)])
def test_two_processes_train_as_one_does_and_each_goes_on_from_the_other(config, start, tmp_path, placement, devices):
    """Each builds the blocks of its own devices, and tells the other what they name."""
    config = config | {"data": config["data"] | {"placement": placement}}
    alone, run = tmp_path / "alone", tmp_path / "run"
    train.train(longer(config, 0.6), alone)
    port = free_port()
    results = ends(*(start(config, run, number, port, devices=devices) for number in range(2)))
    assert [code for code, _, _ in results] == [0, 0], results
    assert "end at step 20" in results[0][1] and "step" not in results[1][1], "one speaks for both"
    assert train.train(longer(config, 0.4), run)["step"] == 40
    port = free_port()
    more = longer(config, 0.6)
    results = ends(*(start(more, run, number, port, devices=devices) for number in range(2)))
    assert "resuming after step 40" in results[0][1] and "end at step 60" in results[0][1]
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5) and len(losses(run)) == 12


def test_lemur_trains_in_two_processes_as_in_one(planted, start, tmp_path):
    """Items are encoded, and the bank is written, by the process that owns them."""
    settings = lemur_config(planted.root)
    settings["data"]["placement"] = "host"
    settings["model"]["cic"] |= {"weight": 0.1, "negatives": 0}  # drawn ones depend on the order of the items
    settings["train"] |= {"epochs": 0.2, "eval_every": 10, "log_every": 5}
    train.train(settings, tmp_path / "alone")
    run, port = tmp_path / "run", free_port()
    results = ends(*(start(settings, run, number, port, devices=2) for number in range(2)))
    assert [code for code, _, _ in results] == [0, 0], results
    assert losses(run) == pytest.approx(losses(tmp_path / "alone"), rel=1e-5) and len(losses(run)) == 4


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_other_with_a_message_and_the_run_goes_on(ids_alone, start, tmp_path, lost):
    run, port = tmp_path / "run", free_port()
    both = [start(longer(ids_alone, 50), run, number, port) for number in range(2)]
    wait_for(run / "checkpoints" / "latest" / "10", *both)
    child = subprocess.run(["pgrep", "-P", str(both[lost].pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(child[0]), signal.SIGKILL)
    since = time.monotonic()
    [(code, _, line)] = ends(both[1 - lost])
    assert code == 2 and time.monotonic() - since < 20
    assert f"process {1 - lost} of 2: another process was lost; the checkpoint of step" in line
    ends(both[lost])
    kept = max(int(path.name) for path in (run / "checkpoints" / "latest").iterdir() if path.name.isdigit())
    assert train.train(longer(ids_alone, (kept + 5) / 100), run)["step"] == kept + 5


def test_a_signal_to_one_process_saves_and_ends_both(ids_alone, start, tmp_path):
    run, port = tmp_path / "run", free_port()
    both = [start(longer(ids_alone, 50), run, number, port) for number in range(2)]
    wait_for(run / "checkpoints" / "latest" / "10", *both)
    both[1].send_signal(signal.SIGTERM)
    (first, out, _), (second, _, _) = ends(*both)
    assert first == second == 128 + signal.SIGTERM and "saved step" in out


def test_processes_with_different_configs_are_refused(config, start, tmp_path):
    port = free_port()
    both = (start(config, tmp_path / "run", k, port, f"--config.optim.learning_rate={k + 1}e-3") for k in range(2))
    for code, _, line in ends(*both):
        assert code == 2
        assert line.startswith("error: process 1 differs from process 0 (config.optim.learning_rate: 0.001 -> 0.002)")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_another_run_writes_is_refused_to_all(ids_alone, start, tmp_path):
    port = free_port()
    with Lock(tmp_path / "run"):
        results = ends(*(start(ids_alone, tmp_path / "run", number, port) for number in range(2)))
    for code, _, line in results:
        assert code == 2
        assert line.startswith(f"error: {tmp_path / 'run'}: process {os.getpid()} on ") and "--workdir" in line


def test_a_coordinator_that_does_not_answer_is_given_up(config, start, tmp_path):
    [(code, _, line)] = ends(start(config, tmp_path / "run", 1, free_port(), "--config.mesh.connect_seconds=2"))
    assert code == 2
    assert line.startswith("error: process 1 of 2: not all processes met at config.mesh.coordinator=127.0.0.1:")


@pytest.mark.parametrize(
    "mesh,words",
    [
        ({"processes": 2}, "config.mesh.processes=2 but config.mesh.coordinator is empty"),
        ({"coordinator": "somewhere", "processes": 2}, "'somewhere' is not host:port"),
        ({"coordinator": "a:1", "processes": 2, "process_id": 2}, "config.mesh.process_id=2 is not below"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(mesh, words):
    assert words in user_error(lambda: processes.check(Mesh(**mesh)))
