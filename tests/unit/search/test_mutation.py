"""Prompts in other words: small edits that stay near the text, and an endpoint that a user names."""

import json
import random
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from support.searches import local_model, search_task, store_for

from diffdpo.search.mutation import ATTRIBUTES, PROMPT_SYNONYMS, mutate_text, mutations, request_texts
from diffdpo.search.tree import TreeSearch

TEXTS = ["slow guitar rock, minor", "metal, punchy, wide", "deep space ambience, sparse, wide", "x", "Żółć"]


@contextmanager
def endpoint(*answers):
    """A local service that gives these answers, one a call: text, or a status; and the bodies that it got."""
    bodies, queue = [], list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bodies.append((self.path, self.headers.get("Authorization"), body))
            answer = queue.pop(0)
            data = json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            self.wfile.write(data if isinstance(answer, str) else b"busy")

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("text", TEXTS)
def test_edits_differ_from_the_text_and_from_each_other_and_a_seed_decides(text):
    edits = mutations(text, 6, seed=1, key="a")
    assert len(edits) == 6
    assert len({text, *edits}) == 7
    assert mutations(text, 6, seed=1, key="a") == edits
    assert mutations(text, 6, seed=2, key="a") != edits
    assert mutations(text, 6, seed=1, key="b") != edits
    assert mutations(text, 2, seed=1, key="a") == edits[:2]


def test_an_edit_never_says_the_opposite():
    """No word of one side becomes a word of the other, and none is added against one that is there."""
    sides = [(set(low), set(high)) for low, high in ATTRIBUTES.values()]
    for seed in range(300):
        edit = mutate_text("slow guitar rock, minor", random.Random(seed))
        words = {word.strip() for part in edit.split(",") for word in (part.strip(), *part.split())}
        assert not words & sides[0][1], edit
        assert not words & sides[3][1], edit
    for low, high in sides:
        assert not low & high
    assert all(len(group) > 1 for group in PROMPT_SYNONYMS)


def test_an_endpoint_rewrites(monkeypatch):
    monkeypatch.setenv("TEST_KEY", "secret")
    with endpoint('1. heavy slow rock\n- "sad guitars, slow"\n\nheavy slow rock\nfourth') as (
        address,
        bodies,
    ):
        texts = request_texts(address, "small", "TEST_KEY", "slow guitar rock", 2)
    assert texts == ["heavy slow rock", "sad guitars, slow"]
    ((path, key, body),) = bodies
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "small")
    assert body["messages"][-1] == {"role": "user", "content": "slow guitar rock"}


def test_an_endpoint_is_asked_twice_and_no_more():
    with endpoint(500, "slow rock") as (address, bodies):
        assert request_texts(address, "m", "NO_SUCH_KEY", "rock", 1) == ["slow rock"]
    assert [key for _, key, _ in bodies] == [None, None]
    for answer in (503, " \n-\n"):
        with endpoint(answer, answer) as (address, bodies), pytest.raises((OSError, ValueError)):
            request_texts(address, "m", "NO_SUCH_KEY", "rock", 1)
        assert len(bodies) == 2


def test_answers_are_kept_with_the_search_so_that_a_rerun_is_the_same(capsys):
    model = local_model()
    store = store_for(model)
    with endpoint("slow sad rock\nminor guitars") as (address, bodies):
        rule = TreeSearch(endpoint=address, endpoint_model="m", variants=3)
        texts = rule.write_texts(search_task(model, store=store), "slow guitar rock", "key")
    assert texts == ["slow guitar rock", "slow sad rock", "minor guitars"]
    assert len(bodies) == 1
    assert rule.write_texts(search_task(model, store=store), "slow guitar rock", "key") == texts  # it is down
    fallback = rule.write_texts(search_task(model), "slow guitar rock", "key")
    assert len(fallback) == 3
    assert fallback == TreeSearch(variants=3).write_texts(search_task(model), "slow guitar rock", "key")
    assert "edited offline instead" in "".join(capsys.readouterr())


def test_an_address_needs_a_model_and_a_scheme():
    with pytest.raises(ValueError, match="belong together"):
        TreeSearch(endpoint="http://localhost:1/v1")
    with pytest.raises(ValueError, match="http://"):
        TreeSearch(endpoint="localhost:1", endpoint_model="m")
