"""What a request may not be: too many at once, too large, or sent by another site's page."""

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

MAX_BUCKETS = 20000
"""Senders that are remembered; those that were silent longest are forgotten first."""
NO_SENDER = ""
"""The sender of all requests without a valid token."""


@dataclass
class TokenBucket:
    """Requests that a sender may still make."""

    level: float
    at: float


@dataclass
class RateLimit:
    """How many requests each sender may make: some at once, and then a number a second."""

    per_s: float
    burst: float
    clock: Callable[[], float]
    buckets: OrderedDict[str, TokenBucket] = field(default_factory=OrderedDict)

    def allows(self, sender: str) -> bool:
        """Count a request, and tell whether it may be answered."""
        now = self.clock()
        bucket = self.buckets.pop(sender, None) or TokenBucket(self.burst, now)
        level = min(self.burst, bucket.level + max(0.0, now - bucket.at) * self.per_s)
        has_room = level >= 1
        self.buckets[sender] = TokenBucket(level - 1 if has_room else level, now)
        while len(self.buckets) > MAX_BUCKETS:
            self.buckets.popitem(last=False)
        return has_room


def is_own_origin(origin: str | None, site: str | None, host: str | None, origins: Collection[str]) -> bool:
    """Whether a request that changes something comes from the study's own page, by what the browser says.

    `origin` and `site` are the headers Origin and Sec-Fetch-Site; a program that is no browser sends neither, and
    carries nobody's cookie.
    """
    if site is not None and site not in ("same-origin", "none"):
        return False
    if origin is None:
        return True
    return origin in origins or (bool(host) and origin in (f"http://{host}", f"https://{host}"))


HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
"""Headers of every answer."""
