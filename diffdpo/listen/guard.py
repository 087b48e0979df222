"""What stands before every request: size, origin, rate, and the headers of the answer."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from diffdpo.listen.database import token_hash
from diffdpo.listen.limits import HEADERS, NO_SENDER, RateLimit, is_own_origin
from diffdpo.listen.live import LiveStudy

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
COOKIE = "listener"
"""Name of the cookie with a listener's token."""
LIMITED_PATHS = ("/api/", "/audio/")
"""The other paths are files in memory that everybody may read."""


class Guard:
    """An ASGI application around that of the study."""

    def __init__(self, app: Any, live: LiveStudy, admin_token: str) -> None:
        limits = live.study.limits
        self.app, self.live, self.admin_hash = app, live, token_hash(admin_token)
        self.max_bytes = round(limits.body_kib * 1024)
        self.rater_limit = RateLimit(limits.requests_per_s, limits.burst, live.clock)
        self.newcomer_limit = RateLimit(limits.newcomers_per_s, 2 * limits.burst, live.clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                names = {name.decode().lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in HEADERS.items() if k.lower() not in names),
                ]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is None and scope["method"] == "POST":
            body = await _read_body(receive, self.max_bytes)
            if body is None:
                refusal = 413, f"a request holds at most {self.max_bytes} bytes"
            else:
                receive = _replay(body, receive)
        if refusal is None:
            await self.app(scope, receive, send_with_headers)
        else:
            await _refuse(*refusal, send_with_headers)

    def _refusal(self, scope: Scope, headers: MutableMapping[str, str]) -> tuple[int, str] | None:
        """Status and reason for a request that is not answered."""
        if scope["path"].startswith(LIMITED_PATHS) and not self._is_in_time(headers):
            return 429, "too many requests; please wait a moment"
        if scope["method"] in ("GET", "HEAD"):
            return None
        if scope["method"] != "POST":
            return 405, "no such method"
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if not is_own_origin(origin, site, headers.get("host"), self.live.study.origins):
            return 403, "this request comes from another page"
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return 415, "requests are JSON"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.max_bytes:
            return 413, f"a request holds at most {self.max_bytes} bytes"
        return None

    def _is_in_time(self, headers: MutableMapping[str, str]) -> bool:
        """Count a request: to its listener, to the admin, or to everybody without a valid token."""
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if bearer and token_hash(bearer) == self.admin_hash:
            return self.rater_limit.allows(self.admin_hash)
        token = read_cookie(headers.get("cookie", ""))
        if token and self.live.rater(token) is not None:
            return self.rater_limit.allows(token_hash(token))
        return self.newcomer_limit.allows(NO_SENDER)


def read_cookie(header: str) -> str:
    """The listener's token in a Cookie header; empty without one."""
    for part in header.split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return ""


async def _read_body(receive: Receive, max_bytes: int) -> bytes | None:
    """The body of a request; None if it is too large, whatever its header said."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > max_bytes:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A body that was read, as the application wants to read it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> MutableMapping[str, Any]:
        return messages.pop() if messages else await receive()

    return next_message


async def _refuse(status: int, reason: str, send: Send) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 429:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
