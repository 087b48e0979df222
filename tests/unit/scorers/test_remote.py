"""A scorer behind HTTP gives the numbers that it gives here; what cannot be scored is refused in a line."""

import json
import pickle
import threading
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from safetensors.numpy import save
from support.reward_server import start_server

from diffdpo.errors import ConfigError, DataError
from diffdpo.parts import build_scorers
from diffdpo.scorers import SCORERS
from diffdpo.scorers.base import fingerprint
from diffdpo.scorers.canonical import canonical
from diffdpo.scorers.engine import score_clips
from diffdpo.scorers.production import Production
from diffdpo.scorers.remote import PromptRemote, Remote
from diffdpo.scorers.tags import Tags
from diffdpo.scorers.wire import HEADER, decode_request, encode_request
from diffdpo.types import Clip, Prompt


def noise(seconds: float = 3.0, seed: int = 0) -> Clip:
    samples = np.random.default_rng(seed).normal(0, 0.1, (2, int(seconds * 44_100))).astype(np.float32)
    return Clip(samples=samples, sample_rate=44_100)


@pytest.fixture(scope="module")
def url():
    return start_server("production", Production())


def test_values_by_a_server_are_those_of_the_scorer(url):
    clips = [canonical(noise(seconds, seed)) for seed, seconds in enumerate((1.0, 3.0, 5.5))]
    remote = Remote(url=url, scorer="production")
    assert np.array_equal(remote(clips), Production()(clips))
    assert remote([]).shape == (0, len(Production.axes))
    assert (remote.axes, remote.traits, remote.shortest_s) == (
        Production.axes, Production.traits, Production.shortest_s,
    )  # fmt: skip


def test_the_engine_stores_them_under_the_name_of_the_scorer(url):
    scorers = build_scorers([{"name": "remote", "args": {"url": url, "scorer": "production"}}])
    assert list(scorers) == ["production"]
    (remote,), (local,) = (score_clips([noise()], s) for s in (scorers, {"production": Production()}))
    assert remote == local
    assert fingerprint(scorers["production"]) != fingerprint(Production()), "another environment's numbers"
    with pytest.raises(ConfigError, match="'production' is named twice"):
        build_scorers(["production", {"name": "remote", "args": {"url": url, "scorer": "production"}}])


def test_prompts_travel_as_words():
    scorer = Tags()
    remote = PromptRemote(url=start_server("tags", scorer), scorer="tags")
    clips, prompts = [canonical(noise())] * 2, [Prompt(id="a", text="rock"), Prompt(id="b")]
    assert np.array_equal(remote(clips, prompts), scorer(clips, prompts))
    with pytest.raises(DataError, match="'c': has a recording"):
        remote(clips[:1], [Prompt(id="c", style_audio="x.wav")])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not a request"),
        (b"\x80\x04.", "not a request"),
        (save({"0": np.zeros((1, 4), np.float32)}), "not a request"),
        (save({HEADER: np.frombuffer(b"[1]", np.uint8)}), "not a request"),
        (encode_request([], None), "no clips"),
        (encode_request([Clip(samples=np.zeros((2, 0), np.float32), sample_rate=8000)], None), "clip 0: empty"),
        (encode_request([replace(noise(), sample_rate=0)], None), "clip 0: a sample rate of 0 Hz"),
        (encode_request([noise(), Clip(samples=np.full((1, 9), np.nan, np.float32), sample_rate=8000)], None),
         "clip 1: samples that are not numbers"),
        (encode_request([noise()], [Prompt(id="a", text="rock")]), "production takes no prompts"),
        (encode_request([noise()], []), "1 clips need as many prompts"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused_in_a_line(url, body, says):
    with pytest.raises(HTTPError) as error:
        urlopen(Request(f"{url}/score", data=body))
    assert error.value.code == 422
    detail = json.loads(error.value.read())["detail"]
    assert says in detail
    assert "\n" not in detail


def test_requests_hold_the_numbers_and_nothing_that_runs():
    clips = [noise(), canonical(noise(1.0))]
    decoded, prompts = decode_request(encode_request(clips, None))
    assert prompts is None
    for clip, copy in zip(clips, decoded, strict=True):
        assert copy.sample_rate == clip.sample_rate
        assert np.array_equal(copy.samples, clip.samples)


def test_a_request_over_the_limit_and_one_without_the_token_are_refused(monkeypatch):
    url = start_server("production", Production(), token="secret", max_bytes=100_000)
    remote = Remote(url=url, scorer="production")
    with pytest.raises(DataError, match=r"wants a token \(HTTP 401\)"):
        remote([noise()])
    monkeypatch.setenv("DIFFDPO_SCORER_TOKEN", "secret")
    with pytest.raises(DataError, match=r"limit of 0.0953674 MiB \(HTTP 413\)"):
        remote([noise()])
    with pytest.raises(HTTPError) as error:  # a body that does not say how long it is
        urlopen(
            Request(
                f"{url}/score", data=iter([bytes(60_000)] * 3), headers={"Authorization": "Bearer secret"}
            )
        )
    assert error.value.code == 413
    assert remote([Clip(samples=noise().samples[:, :9000], sample_rate=44_100)]).shape == (1, 1)


def test_an_answer_of_another_version_ends_the_run():
    @dataclass(frozen=True)
    class Changing:
        """The server's scorer after an upgrade in the middle of a run."""

        version: ClassVar[str] = Production.version
        axes: ClassVar[tuple[str, ...]] = Production.axes
        traits: ClassVar[dict[str, str]] = dict(Production.traits)
        judge_only: ClassVar[bool] = False
        shortest_s: ClassVar[float] = 0.0
        licenses: tuple[str, ...] = ()
        hashes: dict[str, str] = field(default_factory=lambda: {"weights": "a"}, repr=False)

        @property
        def weights_hash(self) -> str:
            return self.hashes["weights"]

        def __call__(self, clips):
            return np.zeros((len(clips), 1))

    scorer, answers = Changing(), []
    url = start_server("production", scorer)
    remote = Remote(url=url, scorer="production")
    answers.append(remote([noise()]))
    restarted = Changing(hashes={"weights": "b"})
    other = start_server("production", restarted)
    proxy = forward_to(lambda: other if len(answers) > 1 else url)
    through = Remote(url=proxy, scorer="production")
    answers.append(through([noise()]))
    with pytest.raises(DataError, match="its weights_hash changed from 'a' to 'b' during the run"):
        through([noise()])


def forward_to(target):
    """The address of a proxy to whatever server is there at the time."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(None)

        def do_POST(self):
            self.reply(self.rfile.read(int(self.headers["Content-Length"])))

        def reply(self, body):
            with urlopen(Request(target() + self.path, data=body)) as response:
                content = response.read()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def test_a_server_of_another_scorer_is_refused(url):
    with pytest.raises(DataError, match="serves scorer 'production', expected is 'harmony'"):
        _ = Remote(url=url, scorer="harmony").weights_hash


def test_a_server_that_is_away_is_waited_for_as_long_as_patience_lasts():
    remote = Remote(url="http://127.0.0.1:9", scorer="production", patience_s=0.5)
    with pytest.raises(DataError, match=r"no answer for 0.5 s .* what is finished is kept"):
        remote([noise()])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"url": "ftp://a"}, "url begins with http"),
        ({"scorer": "adherence"}, "the scorer 'adherence' is served to 'prompt_remote'"),
        ({"scorer": "remote"}, "cannot itself be served"),
        ({"scorer": "harmoni"}, "Did you mean 'harmony'"),
    ],
)
def test_a_wrong_configuration_is_a_line(args, says):
    with pytest.raises(ConfigError, match=says):
        build_scorers([{"name": "remote", "args": args}])


def test_nothing_is_asked_before_there_is_something_to_score():
    (remote,) = build_scorers([{"name": "remote", "args": {"scorer": "songeval"}}]).values()
    assert remote.axes == SCORERS["songeval"].axes
    with pytest.raises(ConfigError, match="needs the address of a server"):
        _ = remote.weights_hash


@pytest.mark.parametrize("name", SCORERS.entries)
def test_scorers_can_be_sent_to_other_processes(name):
    scorer = SCORERS[name]()
    assert pickle.loads(pickle.dumps(scorer)) == scorer
