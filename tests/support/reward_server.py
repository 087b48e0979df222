"""A reward server in a thread of this process, until the process ends."""

import threading
import time

import uvicorn

from diffdpo.recipes.listen import bind_address
from diffdpo.recipes.serve_scorer import ScoringDesk, build_scorer_app
from diffdpo.scorers.base import Scorer


def start_server(name: str, scorer: Scorer, token: str = "", max_bytes: int = 1 << 27) -> str:
    """The address of a server of a scorer."""
    listener = bind_address("127.0.0.1", 0)
    app = build_scorer_app(ScoringDesk(name, scorer), token, max_bytes)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, ws="none"))
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return f"http://127.0.0.1:{listener.getsockname()[1]}"
