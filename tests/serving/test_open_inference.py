"""The Open Inference Protocol: what its specification asks of a server, and of the extension for binary tensors."""

import http.client
import json
from json import dumps

import numpy as np
import pytest

from em3_jax.export import command as export
from em3_jax.serving import open_inference
from tests.export.served_runs import PLAIN, runs  # noqa: F401
from tests.serving.test_serve import ASKED, serving

pytestmark = pytest.mark.quickly_compiled

MODEL = "/v2/models/em3"
TENSORS = {
    "user": ("INT64", [1], [1]),
    "history": ("INT64", [3], [2, 3, 5]),
    "candidates": ("INT64", [2, 2], [[7, 8], [7, 10**9]]),  # nested is the same as flat
    "context.slot": ("BYTES", [1], ["2"]),
    "context.hour": ("INT32", [4], [1, 2, 3, 4]),
    "history_fields.rating": ("INT64", [3], [3, 4, 5]),
}


def body(tensors=TENSORS, **more) -> dict:
    inputs = [{"name": n, "datatype": d, "shape": s, "data": v} for n, (d, s, v) in tensors.items()]
    return {"inputs": inputs} | more


class Answer:
    """What a request was answered."""

    def __init__(self, response: http.client.HTTPResponse):
        self.status_code, self.headers, self.content = response.status, response.headers, response.read()

    def json(self):
        return json.loads(self.content)


class Client:
    """Requests to a service."""

    def __init__(self, port: int):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def get(self, path: str) -> Answer:
        self.connection.request("GET", path)
        return Answer(self.connection.getresponse())

    def post(self, path: str, json=None, content=None, headers=None) -> Answer:
        self.connection.request("POST", path, dumps(json) if content is None else content, headers or {})
        return Answer(self.connection.getresponse())


@pytest.fixture(scope="module")
def client(runs, tmp_path_factory):  # noqa: F811
    root = tmp_path_factory.mktemp("store")
    export.export(runs("em3"), root, PLAIN)
    with serving(root) as (port, _):
        yield Client(port)


def test_server_and_model_tell_what_they_are(client):
    server = client.get("/v2").json()
    assert set(server) == {"name", "version", "extensions"} and server["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    model = client.get(MODEL).json()
    assert set(model) == {"name", "versions", "platform", "inputs", "outputs"} and model["name"] == "em3"
    for tensor in model["inputs"] + model["outputs"]:
        assert set(tensor) == {"name", "datatype", "shape"} and all(isinstance(one, int) for one in tensor["shape"])
        assert tensor["datatype"] in {*open_inference.DTYPES, "BYTES"}
    assert set(TENSORS) < {tensor["name"] for tensor in model["inputs"]}
    of_version = f"{MODEL}/versions/{model['versions'][0]}"
    assert client.get(of_version).json() == model
    for path in (MODEL, of_version):
        assert client.get(f"{path}/ready").json() == {"name": "em3", "ready": True}


def test_an_inference_is_the_score(client):
    expected = client.post("/score", json=ASKED).json()
    found = client.post(f"{MODEL}/infer", json=body(id="a7")).json()
    assert (found["model_name"], found["model_version"], found["id"]) == ("em3", expected["version"], "a7")
    assert found["parameters"] == {"checksum": expected["checksum"]}
    assert found["outputs"] == [
        {"name": "scores", "datatype": "FP64", "shape": [4], "data": expected["scores"]},
        {"name": "known", "datatype": "BOOL", "shape": [4], "data": [True, True, True, False]},
    ]
    only = client.post(f"{MODEL}/infer", json=body(outputs=[{"name": "known"}])).json()
    assert [one["name"] for one in only["outputs"]] == ["known"] and "id" not in only


def test_tensors_in_binary(client):
    expected = client.post("/score", json=ASKED).json()["scores"]
    raw, inputs = b"", []
    for name, (datatype, shape, values) in TENSORS.items():
        if datatype == "BYTES":
            content = b"".join(len(one).to_bytes(4, "little") + one.encode() for one in values)
        else:
            content = np.array(values, open_inference.DTYPES[datatype]).tobytes()
        size = {"binary_data_size": len(content)}
        inputs.append({"name": name, "datatype": datatype, "shape": shape, "parameters": size})
        raw += content
    head = json.dumps({"inputs": inputs, "outputs": [{"name": "scores", "parameters": {"binary_data": True}}]}).encode()
    headers = {open_inference.HEADER: str(len(head))}
    answer = client.post(f"{MODEL}/infer", content=head + raw, headers=headers)
    length = int(answer.headers[open_inference.HEADER])
    said = json.loads(answer.content[:length])["outputs"][0]
    assert said == {"name": "scores", "datatype": "FP64", "shape": [4], "parameters": {"binary_data_size": 32}}
    assert np.frombuffer(answer.content[length:], "<f8").tolist() == expected
    cut = client.post(f"{MODEL}/infer", content=(head + raw)[:-1], headers=headers)
    assert cut.status_code == 422 and "binary_data_size" in cut.json()["error"]
    for length in ("-1", "9" * 5000):
        refused = client.post(f"{MODEL}/infer", content=head + raw, headers={open_inference.HEADER: length})
        assert refused.status_code == 400 and "how many bytes of the body are JSON" in refused.json()["error"]


CANDIDATES = {"candidates": ("INT64", [1], [7])}


@pytest.mark.parametrize(
    ("path", "sent", "status", "words"),
    [
        ("/v2/models/other/infer", body(), 404, "model 'other': there is none; the one here is 'em3'"),
        (f"{MODEL}/versions/99/infer", body(), 404, "version '99': not served now; version 0000001 is"),
        (f"{MODEL}/infer", {}, 422, "inputs: missing, it has to be there"),
        (f"{MODEL}/infer", body(CANDIDATES | {"user": ("INT64", [2], [1, 2])}), 422, "user: 2 values, give one"),
        (f"{MODEL}/infer", body({"candidates": ("INT64", [2], [7])}), 422, "candidates: 1 values, shape [2] has 2"),
        (f"{MODEL}/infer", body({"candidates": ("INT8", [1], [700])}), 422, "candidates: its data are not INT8"),
        (f"{MODEL}/infer", body({"candidates": ("INT64", [1], ["x"])}), 422, "candidates: its data are not INT64"),
        (f"{MODEL}/infer", body({"candidates": ("STRING", [1], ["x"])}), 422, "candidates: datatype STRING; give one"),
        (f"{MODEL}/infer", body(CANDIDATES | {"colour": ("INT64", [1], [1])}), 422, "colour: no such input; there are"),
        (f"{MODEL}/infer", body(CANDIDATES, outputs=[{"name": "x"}]), 422, "x: no such output; there are scores"),
        (f"{MODEL}/infer", body({"user": ("INT64", [1], [1])}), 422, "candidates: missing, it has to be there"),
    ],
)
def test_what_is_wrong_is_an_error_object(client, path, sent, status, words):
    answer = client.post(path, json=sent)
    assert answer.status_code == status and list(answer.json()) == ["error"] and words in answer.json()["error"]
