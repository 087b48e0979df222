"""The command `serve-scorer`: one scorer behind HTTP, for clients in other environments and on other machines."""

import json
import os
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from hmac import compare_digest
from typing import Any

from diffdpo import __version__
from diffdpo.checks import check_range
from diffdpo.errors import ConfigError, DataError, UserError, reason
from diffdpo.parts import build_scorers, model_choice
from diffdpo.progress import log
from diffdpo.recipes.listen import bind_address, serve
from diffdpo.scorers.base import FeatureScorer, PromptScorer, Scorer, fingerprint
from diffdpo.scorers.wire import PROTOCOL, decode_request
from diffdpo.threads import single_thread
from diffdpo.types import Clip, Prompt

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class ScorerService:
    """What is served, and to whom."""

    scorer: str
    args: tuple[str, ...] = ()
    """Arguments of the scorer, each KEY=VALUE."""
    host: str = "127.0.0.1"
    port: int = 8770
    token_variable: str = "DIFFDPO_SCORER_TOKEN"
    """The environment variable with the token that clients must send; where it is not set, none is asked for."""
    max_mb: float = 1024.0
    """Largest body of a request in MiB: ten minutes of stereo at 44.1 kHz are 202."""
    max_waiting: int = 32
    """Requests that wait for the scorer; further ones are told to come back."""

    def __post_init__(self) -> None:
        check_range(self, "port", low=0, high=65535)
        check_range(self, "max_mb", above=0)
        check_range(self, "max_waiting", low=0)


def serve_scorer(service: ScorerService) -> None:
    """Answer requests until a signal ends the server. The weights are loaded before the first one."""
    check_server_installed()
    choice = model_choice(service.scorer, service.args)
    (scorer,) = build_scorers([choice]).values()
    desk = ScoringDesk(service.scorer, scorer, service.max_waiting)
    identity = desk.identity
    token = os.environ.get(service.token_variable, "")
    sockets: list[socket.socket] = [bind_address(service.host, service.port)]
    try:
        port = sockets[0].getsockname()[1]
        log(
            f"{service.scorer} {identity['version']} at http://{service.host}:{port}, "
            f"{'with' if token else 'without'} a token; Ctrl-C ends it"
        )
        if not token and service.host not in ("127.0.0.1", "::1", "localhost"):
            log(f"warning: everyone who reaches this port can use it; set {service.token_variable}")
        serve(build_scorer_app(desk, token, int(service.max_mb * MEBIBYTE)), sockets)
    finally:
        sockets[0].close()


def check_server_installed() -> None:
    """ConfigError without the libraries of a server."""
    try:
        import fastapi
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f'reward servers need fastapi and uvicorn ({error}); install them with `pip install "diffdpo[server]"`'
        ) from None
    del fastapi


@dataclass(frozen=True, eq=False)
class ScoringDesk:
    """A scorer that takes one request at a time, and turns some away when too many wait."""

    name: str
    scorer: Scorer
    max_waiting: int = 32

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What every answer holds: who computed the values."""
        return {
            "scorer": self.name,
            "version": self.scorer.version,
            "weights_hash": self.scorer.weights_hash,
            "fingerprint": fingerprint(self.scorer),
            "axes": list(self.scorer.axes),
            "licenses": list(self.scorer.licenses),
            "protocol": PROTOCOL,
            "package": __version__,
        }

    @cached_property
    def _places(self) -> threading.BoundedSemaphore:
        return threading.BoundedSemaphore(self.max_waiting + 1)

    @cached_property
    def _lock(self) -> threading.Lock:
        return threading.Lock()

    def answer(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """The status and the content of the answer to a request."""
        try:
            clips, prompts = decode_request(body)
        except DataError as error:
            return 422, {"detail": str(error)}
        if prompts is not None and not isinstance(self.scorer, PromptScorer):
            return 422, {"detail": f"{self.name} takes no prompts"}
        if not self._places.acquire(blocking=False):
            return 503, {"detail": "too many requests wait"}
        try:
            with self._lock:
                return 200, {**self.identity, "values": self._values(clips, prompts)}
        except UserError as error:  # weights or a license are missing: no clip's fault
            return 501, {"detail": str(error)}
        except Exception as error:  # of a clip, which the client then sends alone
            log(f"warning: {type(error).__name__}: {reason(error)}")
            return 500, {"detail": f"{type(error).__name__}: {reason(error)}"}
        finally:
            self._places.release()

    def _values(self, clips: Sequence[Clip], prompts: Sequence[Prompt] | None) -> list[list[float]]:
        """As the engine computes them: scorers that share features on one thread."""
        scorer: Any = self.scorer
        with single_thread() if isinstance(scorer, FeatureScorer) else nullcontext():
            table = scorer(clips) if prompts is None else scorer(clips, prompts)
        return [[float(value) for value in row] for row in table]


def build_scorer_app(desk: ScoringDesk, token: str, max_bytes: int) -> Any:
    """The ASGI application: /health, and /score for a body of `scorers.wire`. No number is NaN."""
    from fastapi import FastAPI, Request, Response
    from fastapi.concurrency import run_in_threadpool

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def reply(status: int, content: dict[str, Any]) -> Response:
        return Response(json.dumps(content), status, media_type="application/json")

    def refusal(request: Request) -> Response | None:
        """The answer to a request without the token, or with too large a body."""
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and not compare_digest(sent.encode(), token.encode()):
            return reply(401, {"detail": "the server wants a token"})
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > max_bytes:
            return reply(413, {"detail": f"larger than the server's limit of {max_bytes / MEBIBYTE:g} MiB"})
        return None

    @app.get("/health")
    async def health(request: Request) -> Response:
        return refusal(request) or reply(200, {"status": "ok", **desk.identity})

    @app.post("/score")
    async def score(request: Request) -> Response:
        if (answer := refusal(request)) is not None:
            return answer
        body = bytearray()
        async for part in request.stream():  # a body may be longer than it says
            body += part
            if len(body) > max_bytes:
                return reply(
                    413, {"detail": f"larger than the server's limit of {max_bytes / MEBIBYTE:g} MiB"}
                )
        work: Callable[[bytes], tuple[int, dict[str, Any]]] = desk.answer
        return reply(*await run_in_threadpool(work, bytes(body)))

    return app
