"""Remote: any scorer behind HTTP, in an environment of its own (`diffdpo serve-scorer`)."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, ClassVar, Literal
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
from jaxtyping import Float

from diffdpo.checks import check_range
from diffdpo.errors import ConfigError, DataError, ensure, reason
from diffdpo.progress import log
from diffdpo.scorers.wire import encode_request
from diffdpo.types import Clip, Prompt

BUSY = (408, 425, 429, 502, 503, 504)
"""Answers of a server, or of a proxy before it, that is not ready."""
LONGEST_PAUSE_S = 10.0
IDENTITY = ("scorer", "version", "weights_hash", "fingerprint")
"""What must be equal in all answers of a server."""
_identities: dict[tuple[str, str], dict[str, Any]] = {}
"""What each server said it is when it was first asked, by address and scorer."""


class _OfServed:
    """A fact about the scorer that is served: of an instance that of its scorer, of the class nothing."""

    def __init__(self, name: str, absent: Any) -> None:
        self.name, self.absent = name, absent

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None or not instance.scorer:
            return self.absent
        return getattr(_served_class(instance.scorer), self.name)


@dataclass(frozen=True)
class Remote:
    """Values by a scorer of this package, or of an entry point, that a server computes.

    Axes, traits and shortest length are those of the scorer. The server's version, weights and settings are part
    of the cache key. It is waited for while it does not answer, and an answer of another version ends the run.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[Any] = _OfServed("axes", ())
    traits: ClassVar[Any] = _OfServed("traits", {})
    judge_only: ClassVar[Any] = _OfServed("judge_only", False)
    shortest_s: ClassVar[Any] = _OfServed("shortest_s", 0.0)

    url: str = field(default="", repr=False)
    """Of the server, `http://HOST:PORT`."""
    scorer: str = field(default="", repr=False)
    """Its name, under which the values are stored."""
    token_variable: str = field(default="DIFFDPO_SCORER_TOKEN", repr=False)
    """The environment variable that holds the server's token, if it wants one."""
    timeout_s: float = field(default=600.0, repr=False)
    """For one batch."""
    patience_s: float = field(default=600.0, repr=False)
    """How long a server that does not answer is asked again, with growing pauses."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def stored_as(self) -> str:
        """The name under which the values are stored: that of the scorer."""
        return self.scorer

    @property
    def licenses(self) -> tuple[str, ...]:
        """Licenses of the weights that the server has."""
        return tuple(_identity(self)["licenses"])

    @property
    def weights_hash(self) -> str:
        """The fingerprint of the scorer as the server computes it: class, version, settings and weights."""
        return str(_identity(self)["fingerprint"])

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return _values(self, clips, None)


@dataclass(frozen=True)
class PromptRemote:
    """The same for a scorer that compares a song with its prompt; the server gets the prompt's words."""

    version: ClassVar[str] = "1"
    axes: ClassVar[Any] = _OfServed("axes", ())
    traits: ClassVar[Any] = _OfServed("traits", {})
    judge_only: ClassVar[Any] = _OfServed("judge_only", False)
    shortest_s: ClassVar[Any] = _OfServed("shortest_s", 0.0)
    needs_prompt: ClassVar[Literal[True]] = True

    url: str = field(default="", repr=False)
    """Of the server, `http://HOST:PORT`."""
    scorer: str = field(default="", repr=False)
    """Its name, under which the values are stored."""
    token_variable: str = field(default="DIFFDPO_SCORER_TOKEN", repr=False)
    """The environment variable that holds the server's token, if it wants one."""
    timeout_s: float = field(default=600.0, repr=False)
    """For one batch."""
    patience_s: float = field(default=600.0, repr=False)
    """How long a server that does not answer is asked again, with growing pauses."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def stored_as(self) -> str:
        """The name under which the values are stored: that of the scorer."""
        return self.scorer

    @property
    def licenses(self) -> tuple[str, ...]:
        """Licenses of the weights that the server has."""
        return tuple(_identity(self)["licenses"])

    @property
    def weights_hash(self) -> str:
        """The fingerprint of the scorer as the server computes it."""
        return str(_identity(self)["fingerprint"])

    def __call__(
        self, clips: Sequence[Clip], prompts: Sequence[Prompt] | None = None
    ) -> Float[np.ndarray, "clip axis"]:
        if prompts is not None and len(prompts) != len(clips):
            raise ValueError(f"zip: {len(clips)} clips need as many prompts, got {len(prompts)}")
        return _values(self, clips, prompts)


_Client = Remote | PromptRemote


def _check(client: _Client) -> None:
    check_range(client, "timeout_s", above=0)
    check_range(client, "patience_s", low=0)
    ensure(
        not client.url or client.url.startswith(("http://", "https://")),
        "url begins with http:// or https://",
    )
    if client.scorer:
        served = _served_class(client.scorer)
        takes_prompt = hasattr(served, "needs_prompt")
        name = "prompt_remote" if takes_prompt else "remote"
        ensure(
            takes_prompt == isinstance(client, PromptRemote),
            f"the scorer {client.scorer!r} is served to {name!r}",
        )


def _served_class(name: str) -> Any:
    from diffdpo.registry import pick
    from diffdpo.scorers import SCORERS

    if name in ("remote", "prompt_remote"):
        raise ConfigError(f"scorer {name!r}: cannot itself be served; name the scorer that the server has")
    return pick("scorer", SCORERS, name)


def _identity(client: _Client) -> dict[str, Any]:
    """What the server is: asked once a process. DataError if it serves another scorer, or other axes."""
    if not client.url or not client.scorer:
        raise ConfigError(
            "scorer 'remote': needs the address of a server and the name of its scorer, "
            "{name: remote, args: {url: 'http://…', scorer: …}}"
        )
    key = client.url, client.scorer
    if key not in _identities:
        answer = _ask(client, "/health", None)
        served = _served_class(client.scorer)
        expected = {"scorer": client.scorer, "version": served.version, "axes": list(served.axes)}
        for name, value in expected.items():
            if answer.get(name) != value:
                raise DataError(
                    f"{client.url}: serves {name} {answer.get(name)!r}, expected is {value!r}; start "
                    f"`diffdpo serve-scorer {client.scorer}` of this version"
                )
        _identities[key] = answer
    return _identities[key]


def _values(
    client: _Client, clips: Sequence[Clip], prompts: Sequence[Prompt] | None
) -> Float[np.ndarray, "clip axis"]:
    """The server's values. DataError where it is no longer what it was."""
    if not clips:
        return np.zeros((0, len(client.axes)))
    identity = _identity(client)
    answer = _ask(client, "/score", encode_request(clips, prompts))
    for name in IDENTITY:
        if answer.get(name) != identity[name]:
            raise DataError(
                f"{client.url}: its {name} changed from {identity[name]!r} to {answer.get(name)!r} during the run; "
                "run the command again: scores of the former are kept apart"
            )
    values = np.array(answer["values"], dtype=np.float64)
    if values.shape != (len(clips), len(client.axes)):
        raise DataError(f"{client.url}: {values.shape} values for {len(clips)} clips")
    return values


def _ask(client: _Client, path: str, body: bytes | None) -> dict[str, Any]:
    """The server's answer; a server that is away or busy is asked again until the patience ends."""
    headers = {"Content-Type": "application/octet-stream"}
    if token := os.environ.get(client.token_variable):
        headers["Authorization"] = f"Bearer {token}"
    request = Request(client.url.rstrip("/") + path, data=body, headers=headers)
    opener = build_opener(ProxyHandler({}))
    deadline, pause = time.monotonic() + client.patience_s, 0.1
    while True:
        try:
            with opener.open(request, timeout=client.timeout_s) as response:
                answer: Mapping[str, Any] = json.loads(response.read())
            return dict(answer)
        except HTTPError as error:
            detail = _detail(error)
            if error.code not in BUSY:
                raise _refusal(client, error.code, detail) from None
        except (URLError, OSError, HTTPException, ValueError) as error:
            detail = reason(error)
        if time.monotonic() + pause > deadline:
            raise DataError(
                f"{client.url}: no answer for {client.patience_s:g} s ({detail}); start the server and run the "
                "same command again, what is finished is kept"
            )
        if pause == 0.1 * 2**3:
            log(f"{client.url}: no answer ({detail}); asking again for up to {client.patience_s:g} s")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _detail(error: HTTPError) -> str:
    try:
        return " ".join(str(json.loads(error.read())["detail"]).split())[:300]
    except (ValueError, KeyError, TypeError, OSError):
        return str(error.reason)


def _refusal(client: _Client, code: int, detail: str) -> Exception:
    """The exception of an answer that asking again would not change: a song's fault is no UserError."""
    if code in (400, 422, 500):
        return RuntimeError(f"{client.url}: {detail}")
    return DataError(f"{client.url}: {detail} (HTTP {code})")
