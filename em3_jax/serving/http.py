"""Serves a store over HTTP: em3 serve --store store/ --port 8080

    POST /score     {"user": 7, "history": [17, 23], "candidates": [4711, 99]}; and "context": {"slot": 2}, or one value for each
                    candidate, "history_fields": {"rating": [4, 5]}, where the dataset has such fields;
                    "time": 1700000000, "history_times": [1699990000, 1699999000] where the model reads recency
                    -> {"version", "checksum", "scores": click probabilities, or amounts that are expected, "known":
                        of each candidate,
                        "user_known", "history_used", "unknown": {"history_fields.rating": 3}:
                        how many ids and values the store does not know, by where they stand};
                        and of a run of several labels "labels": {"buy": of each candidate its
                        probability, or the amount that is expected}
                    with "strict": true, a request that names something unknown is refused
    GET /similar?item=17&count=10   -> {"version", "items": [{"id", "cosine"}]}, nearest first
    GET /health     -> {"status", "version", ...}          GET /metrics     Prometheus text
    /v2/...         the Open Inference Protocol, see `open_inference`
    POST /rollback  serves the version before, and holds it; POST /resume goes on with the newest

What is wrong with a request is said in {"error"}, with status 400 (no JSON), 404 (no such item), 408 (the body does not come),
413 (too large), 422 (not as above) or 503 (too many requests at once). A new version of the store takes over between two
requests. For trying things out on
this machine: there is no encryption and no login, so it listens on localhost unless told otherwise.
"""

import asyncio
import os
import signal
import socket
import time
import warnings
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, NamedTuple

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from em3_jax import cli
from em3_jax.core import paths, terminal
from em3_jax.core.errors import UserError
from em3_jax.serving import open_inference
from em3_jax.serving.field_values import LONGEST_ECHO
from em3_jax.serving.recorder import Recorder
from em3_jax.serving.requests import ScoreRequest, first_problem, no_such, parse
from em3_jax.serving.requests import score as score_request
from em3_jax.serving.served_model import USERS, Asked
from em3_jax.serving.service import Model, Scores, Service

DRAINED = 32  # times the largest body, that are read and thrown away so that the client hears why it is refused
BODY_SECONDS, SHUTDOWN_SECONDS = 8, 10  # the first the shorter, so that a client that stalls is refused and not cut off

PATHS = (
    "/score",
    "/similar",
    "/health",
    "/metrics",
    f"/v2/models/{open_inference.NAME}/infer",
)  # that are measured apart
QUERY = ("item", "count")  # what GET /similar is asked with


class Limits(NamedTuple):
    """What a request may ask for.

    Attributes:
      candidates: most of them.
      history: most events, of which the model reads the last T.
      body_bytes: largest body.
      waiting: requests at once, beyond which the service says that it is busy.
    """

    candidates: int = 10_000
    history: int = 10_000
    body_bytes: int = 1 << 20
    waiting: int = 64


class _Metrics:
    """What /metrics tells."""

    def __init__(self, service: Service):
        self.registry = CollectorRegistry()
        self.requests = Counter("em3_requests", "Requests answered", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "em3_request_seconds", "Time to answer", ["path"], registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
        )  # fmt: skip
        self.candidates = Counter("em3_candidates", "Candidates scored", registry=self.registry)
        self.unknown = Counter(
            "em3_unknown_values",
            "Ids and field values of requests that the store does not know",
            ["field"],
            registry=self.registry,
        )
        version = Gauge("em3_version", "Version of the store that is served", registry=self.registry)
        version.set_function(lambda: float(service.model.name))
        said = "Users' sides of requests that this version"
        hits = Gauge("em3_user_cache_hits", f"{said} had kept", registry=self.registry)
        hits.set_function(lambda: float(service.model.user_cache.hits))
        misses = Gauge("em3_user_cache_misses", f"{said} made", registry=self.registry)
        misses.set_function(lambda: float(service.model.user_cache.misses))
        stale = Gauge("em3_newest_version_refused", "1 if the newest version cannot be loaded", registry=self.registry)
        stale.set_function(lambda: float(bool(service.problem)))


def make_app(service: Service, limits: Limits, recorder: Recorder | None = None) -> FastAPI:
    """The application that answers with what `service` serves, and records it if there is a `recorder`."""
    app = FastAPI(title="em3_jax", docs_url=None, redoc_url=None, openapi_url=None)
    metrics = _Metrics(service)
    pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="score")
    waiting = 0

    async def on_pool(function: Callable, *args: Any) -> Any:
        """Runs `function` beside the event loop, unless too much is waiting for that."""
        nonlocal waiting
        if waiting >= limits.waiting:
            raise HTTPException(503, f"{waiting} requests are waiting already; come again")
        waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, function, *args)
        except UserError as error:
            raise HTTPException(422, str(error)) from None
        finally:
            waiting -= 1

    @app.middleware("http")
    async def measured(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.perf_counter()
        response = await answer(request)
        path = request.url.path if request.url.path in PATHS else "other"
        metrics.requests.labels(path, response.status_code).inc()
        metrics.seconds.labels(path).observe(time.perf_counter() - began)
        return response

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": " ".join(str(error.detail).split())}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": first_problem(error.errors(), ())}, 422)

    async def answer(asked: ScoreRequest) -> tuple[Model, Scores]:
        _check_number(asked, limits)
        model = service.model  # one version, whatever is published meanwhile
        scores = await on_pool(_score, model, asked, recorder)
        metrics.candidates.inc(len(asked.candidates))
        for field, count in scores.unknown.items():
            metrics.unknown.labels(field).inc(count)
        return model, scores

    @app.post("/score")
    async def score(request: Request) -> JSONResponse:
        model, scores = await answer(parse(await _body(request, limits.body_bytes)))
        return JSONResponse({"version": model.name, "checksum": model.checksum, **_written(scores)})

    open_inference.add_routes(app, service, lambda request: _body(request, limits.body_bytes), answer)

    @app.get("/similar")
    async def similar(request: Request, item: str, count: Annotated[int, Field(ge=1, le=1000)] = 10) -> dict[str, Any]:
        for name in request.query_params:
            if name not in QUERY:
                raise HTTPException(422, no_such(name, QUERY))
        model = service.model
        if not model.has_content:
            raise HTTPException(404, "the model uses IDs alone: it has no content embeddings to compare")
        if model.items.find([item])[0] < 0:
            raise HTTPException(404, f"item {item[:LONGEST_ECHO]}: not in the store")
        found = await on_pool(model.similar, item, count)
        return {"version": model.name, "items": [{"id": one, "cosine": cosine} for one, cosine in found]}

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> dict[str, Any]:
        model = service.model
        return {
            "status": "ok",
            "version": model.name,
            "checksum": model.checksum,
            "held": service.held,
            "checkpoint": model.manifest["checkpoint"],
            "items": model.manifest["counts"]["items"],
            "problem": service.problem,
        }

    @app.post("/rollback")
    async def roll_back() -> dict[str, str]:
        model = await on_pool(service.roll_back)
        return {"version": model.name, "checksum": model.checksum}

    @app.post("/resume")
    async def go_on() -> dict[str, str]:
        model = await on_pool(service.go_on)
        return {"version": model.name, "checksum": model.checksum}

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _score(model: Model, asked: ScoreRequest, recorder: Recorder | None) -> Scores:
    seen: list[Asked] | None = None if recorder is None else []
    scores = score_request(model, asked, seen)
    if recorder is not None and seen is not None:
        recorder(model, asked, scores.logit, seen)
    return scores


def _check_number(asked: ScoreRequest, limits: Limits) -> None:
    """Refuses more ids than a request may have."""
    for name, most in (("candidates", limits.candidates), ("history", limits.history)):
        number = len(getattr(asked, name))
        if number > most:
            raise HTTPException(422, f"{name}: {number:,} ids, at most {most:,} in one request")


def _written(scores: Scores) -> dict[str, Any]:
    """Scores as the answer of POST /score has them."""
    return {
        "scores": scores.probability.tolist(),
        "known": scores.known.tolist(),
        "user_known": scores.user_known,
        "history_used": scores.history_used,
        "unknown": scores.unknown,
    } | ({"labels": {name: one.tolist() for name, one in scores.further.items()}} if scores.further else {})


async def _body(request: Request, most: int) -> bytes:
    """The body of a request; one that is too large is read to its end, or nearly, and refused."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= most:
                    parts.append(part)
                elif size > DRAINED * most:
                    break
    except TimeoutError:
        raise HTTPException(408, f"the body did not come within {BODY_SECONDS} seconds") from None
    except ClientDisconnect:  # nobody will read this
        raise HTTPException(400, "the connection was closed before the body had come") from None
    if size > most:
        raise HTTPException(413, f"the body has more than {most:,} bytes; ask for fewer candidates at once")
    return b"".join(parts)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes any that is free."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror}; choose another") from None
    return listening


def main() -> None:
    defaults = Limits()
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--store", type=paths.local, required=True, help="a folder made by `em3 export`")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine alone)"
    )
    parser.add_argument("--port", type=int, default=8080, help="default 8080; 0 = any that is free")
    parser.add_argument("--max-candidates", type=int, default=defaults.candidates, help="in one request")
    parser.add_argument("--max-body", type=int, default=defaults.body_bytes, help="bytes of one request")
    parser.add_argument("--poll-seconds", type=float, default=1.0, help="between two looks for a new version")
    parser.add_argument(
        "--verify", action="store_true", help="compare the sha256 of all files of a version, not their sizes alone"
    )
    strict = "refuse ids and field values that the store does not know"
    parser.add_argument("--strict", action="store_true", help=strict)
    parser.add_argument("--record", type=paths.local, help="file to append each scored request to, for `em3 replay`")
    users = f"users whose history is kept as it was encoded last (default {USERS:,}; 0 = none)"
    parser.add_argument("--user-cache", type=int, default=USERS, help=users)
    args = parser.parse_args()
    if args.user_cache < 0:
        raise UserError(f"--user-cache {args.user_cache}: give a number from 0 up")
    if not 0 <= args.port < 1 << 16 or args.max_candidates < 1 or args.max_body < 1 or args.poll_seconds <= 0:
        raise UserError("--port: from 0 to 65535; --max-candidates, --max-body, --poll-seconds: above 0")
    listening = listen(args.host, args.port)
    recorder = Recorder(args.record) if args.record else None
    settings = {"poll_seconds": args.poll_seconds, "verify": args.verify, "strict": args.strict}
    settings["users"] = args.user_cache
    with Service(args.store, **settings) as service:
        host, port = listening.getsockname()[:2]
        facts = {"version": service.model.name, "store": str(args.store), "host": host, "port": port}
        terminal.result(f"version {service.model.name} of {args.store} at http://{host}:{port} (Ctrl-C stops)", **facts)
        if service.problem:
            warnings.warn(f"{service.problem}; version {service.model.name} is served", stacklevel=1)
        app = make_app(service, Limits(candidates=args.max_candidates, body_bytes=args.max_body), recorder)
        for one in (signal.SIGTERM, signal.SIGINT):  # uvicorn ends gracefully on them, and then raises them once more
            signal.signal(one, lambda *_: None)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=SHUTDOWN_SECONDS)
        uvicorn.Server(config).run(sockets=[listening])
    print("stopped")
