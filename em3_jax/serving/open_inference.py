"""The Open Inference Protocol, version 2 (KServe, Triton), over HTTP, with its extension for tensors in binary.

    GET  /v2, /v2/health/live, /v2/health/ready
    GET  /v2/models/em3[/versions/<version>], /v2/models/em3[/versions/<version>]/ready
    POST /v2/models/em3[/versions/<version>]/infer

A request is one user with its candidates, as POST /score has it; a tensor is one of its lists:

    candidates [b], user [1], history [h], time [1], history_times [h], context.<field> [1] or [b], history_fields.<field> [h]
    -> scores [b] FP64, known [b] BOOL, and labels.<label> [b] FP64 of each further label

The checksum of the version that answered is among the parameters of the answer. Specification:
github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md. Letters: b candidates, h events.
"""

import json
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field, ValidationError

from em3_jax import __version__
from em3_jax.core.labels import Labels
from em3_jax.serving.field_values import LONGEST_ECHO
from em3_jax.serving.requests import ScoreRequest, checked, first_problem
from em3_jax.serving.service import Model, Scores, Service

NAME = "em3"
HEADER = "Inference-Header-Content-Length"
WHOLE = {
    f"{sign}INT{bits}": f"<{kind}{bits // 8}" for sign, kind in (("", "i"), ("U", "u")) for bits in (8, 16, 32, 64)
}
DTYPES = WHOLE | {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BOOL": "?"}
"""Datatype of the protocol -> numpy's; BYTES stands beside them."""
SINGLE, LISTS = ("user", "time"), ("candidates", "history", "history_times")
GROUPS = ("context", "history_fields")


class Tensor(BaseModel):
    """A tensor of a request; `data` is flat or nested, and missing where it comes in binary."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: list[Any] | None = None


class Wanted(BaseModel):
    """An output that a request asks for."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferRequest(BaseModel):
    """The body of an inference."""

    id: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: list[Tensor]
    outputs: list[Wanted] | None = None


def add_routes(
    app: FastAPI,
    service: Service,
    body: Callable[[Request], Awaitable[bytes]],
    answer: Callable[[ScoreRequest], Awaitable[tuple[Model, Scores]]],
) -> None:
    """Adds the protocol's paths.

    Args:
      body: reads that of a request.
      answer: scores.
    """

    @app.get("/v2")
    async def server() -> dict[str, Any]:
        return {"name": "em3_jax", "version": __version__, "extensions": ["binary_tensor_data"]}

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.get("/v2/models/{name}")
    @app.get("/v2/models/{name}/versions/{version}")
    async def model_metadata(name: str, version: str | None = None) -> dict[str, Any]:
        return _metadata(_find(service, name, version))

    @app.get("/v2/models/{name}/ready")
    @app.get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str | None = None) -> dict[str, Any]:
        _find(service, name, version)
        return {"name": name, "ready": True}

    @app.post("/v2/models/{name}/infer")
    @app.post("/v2/models/{name}/versions/{version}/infer")
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        _find(service, name, version)
        asked, tensors = _read(await body(request), request.headers.get(HEADER))
        model, scores = await answer(checked(_asked(tensors)))
        return _written(asked, model, scores)


def _find(service: Service, name: str, version: str | None) -> Model:
    """The model that is served, if it is the one that a path names."""
    model = service.model
    if name != NAME:
        raise HTTPException(404, f"model '{name[:LONGEST_ECHO]}': there is none; the one here is '{NAME}'")
    if version not in (None, model.name):
        raise HTTPException(404, f"version '{version[:LONGEST_ECHO]}': not served now; version {model.name} is")
    return model


def _metadata(model: Model) -> dict[str, Any]:
    facts = model.manifest["serving"]
    ids = {kind: "INT64" if facts[f"{kind}_ids"] == "integer" else "BYTES" for kind in ("user", "item")}
    inputs = {"candidates": ids["item"], "user": ids["user"], "history": ids["item"]}
    inputs |= {"time": "INT64", "history_times": "INT64"}
    for group, kind in (("context", "context"), ("history_fields", "event")):
        inputs |= {f"{group}.{name}": "BYTES" for name in model.names_of(kind)}
    outputs = {"scores": "FP64", "known": "BOOL"} | dict.fromkeys(
        (f"labels.{one}" for one in Labels.from_json(facts.get("labels", {})).names), "FP64"
    )

    def tensors(of: Mapping[str, str]) -> list[dict[str, Any]]:
        return [{"name": n, "datatype": d, "shape": [1] if n in SINGLE else [-1]} for n, d in of.items()]

    return {
        "name": NAME,
        "versions": [model.name],
        "platform": "em3_jax",
        "inputs": tensors(inputs),
        "outputs": tensors(outputs),
    }


def _read(body: bytes, header: str | None) -> tuple[InferRequest, dict[str, list[Any]]]:
    """(the request, {name: values of a tensor}) of a body: JSON, and after it what comes in binary."""
    end = len(body)
    if header is not None:
        if not header.isascii() or not header.isdigit() or len(header) > len(str(end)) or int(header) > end:
            raise HTTPException(400, f"{HEADER}: give how many bytes of the body are JSON")
        end = int(header)
    try:
        asked = InferRequest.model_validate_json(body[:end])
    except ValidationError as error:
        problems = error.errors(include_url=False)
        status = 400 if problems[0]["type"] == "json_invalid" else 422
        raise HTTPException(status, first_problem(problems, tuple(InferRequest.model_fields))) from None
    tensors: dict[str, list[Any]] = {}
    for one in asked.inputs:
        size = one.parameters.get("binary_data_size")
        if one.name in tensors:
            raise HTTPException(422, f"{one.name[:LONGEST_ECHO]}: there are two such inputs")
        if size is not None and (type(size) is not int or not 0 <= size <= len(body) - end):
            raise HTTPException(422, f"{one.name[:LONGEST_ECHO]}: the body has no such binary_data_size left")
        raw = None if size is None else body[end : end + size]
        end += size or 0
        tensors[one.name] = _values(one, raw)
    return asked, tensors


def _values(tensor: Tensor, raw: bytes | None) -> list[Any]:
    """The values of a tensor, one after the other."""
    name, dtype = tensor.name[:LONGEST_ECHO], DTYPES.get(tensor.datatype)
    if dtype is None and tensor.datatype != "BYTES":
        raise HTTPException(422, f"{name}: datatype {tensor.datatype[:20]}; give one of {', '.join(DTYPES)}, BYTES")
    if any(size < 0 for size in tensor.shape):
        raise HTTPException(422, f"{name}: shape {tensor.shape}; give sizes from 0 up")
    try:
        if raw is not None:
            values = _texts(raw) if dtype is None else np.frombuffer(raw, dtype).tolist()
        else:
            values = _flat(tensor.data or [])
            if dtype is not None and values:
                found = np.array(values)
                whole = tensor.datatype in WHOLE
                if found.ndim != 1 or found.dtype.kind not in ("iu" if whole else "b" if dtype == "?" else "iuf"):
                    raise ValueError
                np.array(values, dtype)  # or they do not fit
    except (ValueError, OverflowError, UnicodeDecodeError, TypeError):
        raise HTTPException(422, f"{name}: its data are not {tensor.datatype}") from None
    if len(values) != math.prod(tensor.shape):
        raise HTTPException(422, f"{name}: {len(values)} values, shape {tensor.shape} has {math.prod(tensor.shape)}")
    return values


def _flat(data: list[Any]) -> list[Any]:
    """The values of nested lists, one after the other."""
    while any(isinstance(one, list) for one in data):
        data = [value for one in data for value in (one if isinstance(one, list) else [one])]
    return data


def _texts(raw: bytes) -> list[str]:
    """The texts of a BYTES tensor in binary: each its length in four bytes, little end first, and itself."""
    found, place = [], 0
    while place < len(raw):
        length = int.from_bytes(raw[place : place + 4], "little")
        if place + 4 + length > len(raw):
            raise ValueError
        found.append(raw[place + 4 : place + 4 + length].decode())
        place += 4 + length
    return found


def _asked(tensors: Mapping[str, list[Any]]) -> dict[str, Any]:
    """What `ScoreRequest` has of the tensors."""
    given: dict[str, Any] = {}
    for name, values in tensors.items():
        group, dot, field = name.partition(".")
        if name in SINGLE:
            if len(values) != 1:
                raise HTTPException(422, f"{name}: {len(values)} values, give one")
            given[name] = values[0]
        elif name in LISTS:
            given[name] = values
        elif dot and group in GROUPS:
            alone = group == "context" and len(values) == 1
            given.setdefault(group, {})[field] = values[0] if alone else values
        else:
            there = ", ".join([*SINGLE, *LISTS, *(f"{one}.<field>" for one in GROUPS)])
            raise HTTPException(422, f"{name[:LONGEST_ECHO]}: no such input; there are {there}")
    return given


def _written(asked: InferRequest, model: Model, scores: Scores) -> Response:
    """The answer, with those outputs that are asked for, in binary where that is."""
    found: dict[str, tuple[str, np.ndarray]] = {"scores": ("FP64", scores.probability), "known": ("BOOL", scores.known)}
    found |= {f"labels.{name}": ("FP64", one) for name, one in scores.further.items()}
    wanted = asked.outputs if asked.outputs is not None else [Wanted(name=name) for name in found]
    every, outputs, raw = asked.parameters.get("binary_data_output", False), [], b""
    for one in wanted:
        if one.name not in found:
            raise HTTPException(422, f"{one.name[:LONGEST_ECHO]}: no such output; there are {', '.join(found)}")
        datatype, array = found[one.name]
        said: dict[str, Any] = {"name": one.name, "datatype": datatype, "shape": list(array.shape)}
        if one.parameters.get("binary_data", every):
            content = np.ascontiguousarray(array, DTYPES[datatype]).tobytes()
            said["parameters"], raw = {"binary_data_size": len(content)}, raw + content
        else:
            said["data"] = array.tolist()
        outputs.append(said)
    answer: dict[str, Any] = {
        "model_name": NAME,
        "model_version": model.name,
        "parameters": {"checksum": model.checksum},
    }
    answer |= ({"id": asked.id} if asked.id is not None else {}) | {"outputs": outputs}
    if not raw:
        return JSONResponse(answer)
    head = json.dumps(answer).encode()
    return Response(head + raw, media_type="application/octet-stream", headers={HEADER: str(len(head))})
