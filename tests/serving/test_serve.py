"""The HTTP service as a process of its own: right answers, clear refusals, versions switched under load, and it lives on."""

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from em3_jax.export import command as export
from em3_jax.serving import store
from em3_jax.serving.service import Model
from tests.conftest import ROOT
from tests.export.served_runs import PLAIN, runs  # noqa: F401

pytestmark = pytest.mark.quickly_compiled

KEPT_SECONDS = 5  # uvicorn closes a connection that was silent for so long


class Client:
    """One connection to the service; made anew where the machine was so busy that the service took it for left."""

    def __init__(self, port: int):
        self.connection, self.answered = http.client.HTTPConnection("127.0.0.1", port, timeout=60), time.monotonic()

    def __call__(self, method: str, path: str, body=None) -> tuple[int, dict | str]:
        body = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        try:
            found = self._ask(method, path, body)
        except ConnectionError:
            if time.monotonic() - self.answered < KEPT_SECONDS - 1:
                raise
            self.connection.close()
            found = self._ask(method, path, body)
        self.answered = time.monotonic()
        return found

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[int, dict | str]:
        self.connection.request(method, path, body)
        response = self.connection.getresponse()
        text = response.read().decode()
        return response.status, json.loads(text) if "json" in response.headers["content-type"] else text


PROGRAM = """
import sys
from em3_jax import cli
from em3_jax.serving import http
http.BODY_SECONDS = float(sys.argv.pop(1))
cli.run(http.main)
"""


@contextlib.contextmanager
def serving(folder: Path, *options: str, body_seconds: float = 8.0):
    """(port, process) of a service of the store in `folder`; what it reports stands in its output."""
    command = [sys.executable, "-c", PROGRAM, str(body_seconds), "--store", str(folder), "--port", "0"]
    command += ["--poll-seconds", "0.05", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            line = process.stdout.readline()
            yield int(re.search(r"http://127\.0\.0\.1:(\d+) ", line)[1]), process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory) -> Path:  # noqa: F811
    root = tmp_path_factory.mktemp("store")
    export.export(runs("em3"), root, PLAIN._replace(keep=1000))
    return root


@pytest.fixture(scope="module")
def port(folder):
    with serving(folder, "--max-candidates", "50000") as (port, _):
        yield port


ASKED = {"user": 1, "history": [2, 3, 5], "candidates": [7, 8, 7, 10**9], "context": {"slot": 2, "hour": [1, 2, 3, 4]}}
ASKED |= {"history_fields": {"rating": [3, 4, 5]}}
STRICT = ASKED | {"candidates": [7, 8, 7, 5], "strict": True}


def test_scores_and_similar_items_are_those_of_the_reader(folder, port):
    model, client = Model(store.open_current(folder)), Client(port)
    status, answer = client("POST", "/score", ASKED)
    expected = model.score(**ASKED)
    assert status == 200 and answer["version"] == model.name
    np.testing.assert_allclose(answer["scores"], expected.probability, rtol=0, atol=1e-12)
    assert answer["known"] == expected.known.tolist() == [True, True, True, False]
    assert (answer["user_known"], answer["history_used"]) == (expected.user_known, expected.history_used)
    item = model.items.ids([9])[0]
    status, answer = client("GET", f"/similar?item={item}&count=4")
    assert status == 200 and [(one["id"], one["cosine"]) for one in answer["items"]] == model.similar(item, 4)
    cosines = [one["cosine"] for one in answer["items"]]
    assert len(cosines) == 4 and cosines == sorted(cosines, reverse=True)


REFUSED = [
    ("/score", b"{", 400, "Invalid JSON"),
    ("/score", b"", 400, "Invalid JSON"),
    ("/score", b"\xff\xfe{}", 400, "Invalid JSON"),
    ("/score", [1], 422, "the body is no JSON object; give one with candidates"),
    ("/score", {"user": 1}, 422, "candidates: missing, it has to be there"),
    ("/score", ASKED | {"colour": 1}, 422, "colour: no such field; known: candidates, context, history, "),
    ("/score", {"user": 1, "candidats": [7]}, 422, "candidats: no such field; did you mean 'candidates'?"),
    ("/score", ASKED | {"histroy": [7]}, 422, "histroy: no such field; did you mean 'history'?"),
    ("/score", ASKED | {"history_field": {}}, 422, "history_field: no such field; did you mean 'history_fields'?"),
    ("/score", ASKED | {"context": [1]}, 422, "context: give an object, name -> value"),
    ("/score", ASKED | {"history_fields": {"rating": 5}}, 422, "history_fields.rating: give a list"),
    ("/score", ASKED | {"candidates": []}, 422, "candidates: give at least one"),
    ("/score", ASKED | {"candidates": "7"}, 422, "candidates: give a list"),
    ("/score", ASKED | {"candidates": [7, None]}, 422, "candidates: an id is missing (None)"),
    ("/score", ASKED | {"candidates": [[7]]}, 422, "candidates: an id is a number or a text, not list"),
    ("/score", ASKED | {"user": ["7" * 5000]}, 422, "user: an id is a number or a text, not list as '['777"),
    ("/score", ASKED | {"strict": "yes"}, 422, "strict: give true or false"),
    ("/score", STRICT | {"candidates": [7, 1.5]}, 422, "candidates: '1.5' is not known"),
    ("/score", STRICT | {"history": ["x" * 5000] * 3}, 422, "history: '" + "x" * 100 + "' is not known"),
    ("/score", STRICT | {"user": 1 << 80}, 422, f"user: '{1 << 80}' is not known, which"),
    ("/score", ASKED | {"x" * 5000: 1}, 422, "x" * 100 + ": no such field; known: "),
    ("/score", b'{"context": {"slot": ' + b"[" * 99999, 400, "Invalid JSON: recursion limit exceeded"),
    (
        "/score",
        json.dumps(ASKED | {"candidates": [float("nan")]}).encode(),
        422,
        "candidates: an id is missing (nan); leave it out",
    ),
    ("/score", ASKED | {"user": {"id": 1}}, 422, "user: an id is a number or a text, not dict"),
    ("/score", b'{"user": ' + b"7" * 5000 + b', "candidates": [7], "strict": true}', 400, "Invalid JSON"),
    ("/score", ASKED | {"history": {"a": 1}}, 422, "history: give a list"),
    ("/score", ASKED | {"context": {"weather": 1}}, 422, "context field 'weather': no such field"),
    ("/score", ASKED | {"context": {"slot": "wet"}}, 422, "context field 'slot': has no vocabulary"),
    ("/score", ASKED | {"context": {"slot": [[1], [2, 3], 1, 1]}}, 422, "context field 'slot': takes texts"),
    ("/score", ASKED | {"context": {"slot": 1 << 80}}, 422, "context field 'slot': has no vocabulary"),
    ("/score", ASKED | {"context": {"slot": {"wet": 1}}}, 422, "context field 'slot': takes texts"),
    ("/score", ASKED | {"history_fields": {"rating": [1]}}, 422, "history field 'rating': 1 values for a history of 3"),
    (
        "/score",
        ASKED | {"history_fields": {"mood": [1, 2, 3]}},
        422,
        "history field 'mood': no such field; known: kind, rating",
    ),
    ("/score", ASKED | {"candidates": [1] * 100_000}, 422, "candidates: 100,000 ids, at most 50,000 in one request"),
    ("/score", b" " * 10_000_000, 413, "the body has more than 1,048,576 bytes"),
    ("/similar?item=999999999", None, 404, "item 999999999: not in the store"),
    ("/similar?item=x", None, 404, "item x: not in the store"),
    ("/similar?item=1_0", None, 404, "item 1_0: not in the store"),
    ("/similar?item=" + "9" * 5000, None, 404, "item " + "9" * 100 + ": not in the store"),
    ("/similar?item=" + "9" * 30, None, 404, "item " + "9" * 30 + ": not in the store"),
    ("/similar?item=1&count=0", None, 422, "count: has to be greater than or equal to 1"),
    ("/similar?item=1&count=many", None, 422, "count: give a whole number"),
    ("/similar?item=1&cuont=3", None, 422, "cuont: no such field; did you mean 'count'?"),
    ("/similar?itm=1&item=1", None, 422, "itm: no such field; did you mean 'item'?"),
    ("/similar", None, 422, "item: missing, it has to be there"),
    ("/nothing", None, 404, "Not Found"),
]


@pytest.mark.parametrize(("path", "body", "status", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_wrong_is_said_with_the_right_status_and_the_service_lives_on(port, path, body, status, words):
    found, answer = Client(port)("GET" if body is None else "POST", path, body)
    assert found == status and list(answer) == ["error"] and words in answer["error"] and "\n" not in answer["error"]
    assert Client(port)("POST", "/score", ASKED)[0] == 200


def test_an_item_without_content_has_no_similar_ones_and_the_wrong_method_is_refused(folder, port):
    item = Model(store.open_current(folder)).items.ids([3])[0]
    status, answer = Client(port)("GET", f"/similar?item={item}")
    assert status == 422 and "has no content to compare" in answer["error"]
    assert Client(port)("GET", "/score") == (405, {"error": "Method Not Allowed"})


def test_bodies_in_pieces_and_clients_that_stop_talking(folder):
    """A body without its length, one that comes slowly, a client that leaves halfway, and one that stalls for good."""
    body = json.dumps(ASKED).encode()
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    measured = head + b"Content-Length: %d\r\n\r\n" % len(body)

    def sent(*parts: bytes, leave: bool = False) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            for part in parts:
                connection.sendall(part)
                time.sleep(0.02)
            if leave:
                connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    with serving(folder, body_seconds=0.5) as (port, process):
        for parts in ([chunked], [measured, *(body[k : k + 20] for k in range(0, len(body), 20))]):
            answer = sent(*parts)
            assert answer.startswith(b"HTTP/1.1 200 ") and b'"scores"' in answer
        sent(measured, body[:9], leave=True)
        stalled = sent(measured, body[:9])
        assert stalled.startswith(b"HTTP/1.1 408 ") and b"the body did not come within 0.5 seconds" in stalled
        assert Client(port)("POST", "/score", ASKED)[0] == 200
        head = http.client.HTTPConnection("127.0.0.1", port)
        head.request("HEAD", "/health")
        assert head.getresponse().status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0 and process.stdout.read() == "stopped\n"  # no traceback on the way


def test_the_largest_request_is_answered(port):
    status, answer = Client(port)("POST", "/score", ASKED | {"candidates": [7] * 50_000, "context": {}})
    assert status == 200 and len(answer["scores"]) == 50_000 and np.ptp(answer["scores"]) < 1e-6
    status, answer = Client(port)("POST", "/score", {"candidates": [7]})
    assert status == 200 and not answer["user_known"] and answer["history_used"] == 0


def test_health_and_metrics(port):
    client = Client(port)
    status, answer = client("GET", "/health")
    assert status == 200 and answer["status"] == "ok" and answer["problem"] == "" and answer["checkpoint"]["step"] > 0
    before = client("GET", "/metrics")[1]
    client("POST", "/score", ASKED)
    client("POST", "/score", b"{")
    after = client("GET", "/metrics")[1]

    def value(text: str, name: str) -> float:
        return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(name)))

    ok, wrong = ('em3_requests_total{path="/score",status="%d"}' % status for status in (200, 400))  # noqa: UP031
    assert (
        value(after, ok) == value(before, ok) + 1
        and value(after, "em3_candidates") == value(before, "em3_candidates") + 4
    )
    assert value(after, wrong) >= 1 and value(after, "em3_version ") >= 1
    assert value(after, 'em3_request_seconds_count{path="/score"}') > 0


def test_versions_switch_under_load_without_an_error_or_a_mixture(folder, tmp_path):
    """50 versions, each with other parameters in the last bias, so that its name is in its scores."""
    root = Path(shutil.copytree(folder, tmp_path / "store"))
    first = store.open_current(root)
    expected, problems, seen, stop = {}, [], set(), threading.Event()
    plain = Model(first).score(**ASKED).logit

    def publish(number: int) -> None:
        with store.writing(root) as following:
            shutil.copytree(folder / "versions" / first.name, following)
            (following / store.MANIFEST).unlink()
            with np.load(following / "params.npz") as arrays:
                params = dict(arrays)
            bias = max(name for name in params if name.startswith("model/backbone/dnn/") and params[name].shape == (1,))
            params[bias] = params[bias] + 0.01 * number
            np.savez(following / "params.npz", **params)
            kept = {key: value for key, value in first.manifest.items() if key not in ("format", "version", "files")}
            expected[f"{number + 1:07d}"] = 1 / (1 + np.exp(-(plain.astype(np.float64) + 0.01 * number)))
            assert store.publish(root, kept, keep=2) == f"{number + 1:07d}"

    expected[first.name] = 1 / (1 + np.exp(-plain.astype(np.float64)))
    with serving(root) as (port, process):

        def load() -> None:
            client = Client(port)
            while not stop.is_set():
                try:
                    status, answer = client("POST", "/score", ASKED)
                    right = status == 200 and np.abs(answer["scores"] - expected[answer["version"]]).max() < 1e-5
                    seen.add(answer["version"])
                    if not right:
                        problems.append((status, answer))
                except Exception as error:
                    problems.append(error)
                    return

        clients = [threading.Thread(target=load) for _ in range(2)]
        for client in clients:
            client.start()
        for number in range(1, 51):
            publish(number)
            time.sleep(0.02)
        deadline = time.monotonic() + 300
        while "0000051" not in seen and time.monotonic() < deadline and not problems:
            time.sleep(0.05)
        stop.set()
        for client in clients:
            client.join()
        assert not problems, problems[0]
        assert "0000051" in seen and len(seen) > 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0 and process.stdout.read() == "stopped\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--store", "nowhere"], "nowhere: no store, it has no file 'current'"),
        (["--port", "70000"], "--port: from 0 to 65535"),
        (["--host", "256.1.1.1"], "--host 256.1.1.1 --port 0"),
    ],
)
def test_mistakes_are_one_line(folder, options, words):
    command = [sys.executable, "-m", "em3_jax.serve", "--store", str(folder), "--port", "0", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0], (
        done.stderr
    )


def test_a_port_in_use_and_a_damaged_store_are_one_line(folder, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "em3_jax.serve", "--store", str(folder), "--port", number]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    message = f"error: --host 127.0.0.1 --port {number}: Address already in use; choose another\n"
    assert (done.returncode, done.stderr) == (2, message)
    root = Path(shutil.copytree(folder, tmp_path / "store"))
    path = root / "versions" / store.current_name(root) / "table.npy"
    path.write_bytes(path.read_bytes()[:100])
    command = [sys.executable, "-m", "em3_jax.serve", "--store", str(root), "--port", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "table.npy: 100 bytes, its manifest says" in done.stderr
