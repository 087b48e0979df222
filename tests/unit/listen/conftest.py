"""What the tests of listening tests share."""

from collections.abc import Iterator

import pytest
from anyio.from_thread import start_blocking_portal
from support.listening import EVENT_LOOPS


@pytest.fixture(scope="session", autouse=True)
def event_loop_of_all_requests() -> Iterator[None]:
    with start_blocking_portal() as portal:
        EVENT_LOOPS.append(portal)
        yield
        EVENT_LOOPS.clear()
