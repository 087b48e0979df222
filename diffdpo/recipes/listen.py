"""The verb `listen`: a listening test in the browser, until it is stopped; the same command continues."""

import errno
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from diffdpo.checks import check_range, check_seed
from diffdpo.config_paths import PATH
from diffdpo.errors import ConfigError, DataError, ensure
from diffdpo.listen.app import build_app, check_installed
from diffdpo.listen.catalog import Catalog, mushra_pages, read_listened_songs, song_pairs, system_names
from diffdpo.listen.database import DATABASE, Database, open_secret
from diffdpo.listen.live import LiveStudy
from diffdpo.listen.results import check_database
from diffdpo.listen.study import (
    ConsentConfig,
    ExcerptConfig,
    LimitConfig,
    Mode,
    MushraConfig,
    PairRule,
    Study,
    TrialConfig,
)
from diffdpo.progress import log
from diffdpo.run_dir import check_inputs, dist_env, open_run

ADMIN_TOKEN = "admin.token"
FREE_KEYS = (
    "port", "host", "origins", "limits", "consent", "trials.count", "trials.training", "trials.break_after_min",
    "trials.break_s", "trials.headphones",
)  # fmt: skip
"""What may change between two starts of one study."""
EVERYWHERE = ("0.0.0.0", "::")


@dataclass
class ListenRun:
    """A listening test on samples folders."""

    out: str = field(default=MISSING, metadata=PATH)
    """Folder of the study: its database, its tables of votes and opinions, the token of the admin page."""
    samples: list[str] = field(default=MISSING, metadata=PATH)
    """Samples folders, or folders of audio files whose names say which belong together."""
    systems: list[str] = field(default_factory=list)
    """A name for each folder, which listeners never see; by default the folder's own."""
    name: str = ""
    """Name of the study, the source of its votes; by default that of its folder."""
    mode: Mode = "pair"
    """Which of two songs is better, thumbs and stars for single songs, or MUSHRA with a hidden reference."""
    pairs: PairRule = "across"
    """Which songs of a prompt are compared: of different folders (`matched`: only those of the same id), within a
    folder, or all."""
    trials: TrialConfig = field(default_factory=TrialConfig)
    excerpts: ExcerptConfig = field(default_factory=ExcerptConfig)
    consent: ConsentConfig = field(default_factory=ConsentConfig)
    mushra: MushraConfig = field(default_factory=MushraConfig)
    limits: LimitConfig = field(default_factory=LimitConfig)
    host: str = "127.0.0.1"
    """Address that the server listens at: this machine alone, or 0.0.0.0 for the whole network."""
    port: int = 8765
    """0: any free port."""
    origins: list[str] = field(default_factory=list)
    """Addresses under which a reverse proxy shows the page, such as https://listen.example.org."""
    seed: int = 0
    """Of where excerpts begin."""

    def __post_init__(self) -> None:
        check_range(self, "port", low=0, high=65535)
        check_seed(self, "seed")
        ensure(
            self.mode != "mushra" or bool(self.mushra.reference),
            "mode=mushra needs the folder of the references, mushra.reference=…",
        )
        ensure(
            all(origin.startswith(("http://", "https://")) for origin in self.origins),
            "origins begin with http:// or https://",
        )

    def check_parts(self) -> None:
        """Nothing is named that could be misspelt."""


def run(cfg: ListenRun) -> Path:
    """Serve the study until Ctrl-C; then the tables of votes and opinions are written."""
    check_installed()
    check_inputs(samples=cfg.samples)
    out = Path(cfg.out)
    with open_run(cfg, free=FREE_KEYS, dist=dist_env()):
        sockets = [bind_address(cfg.host, cfg.port)]
        try:
            live = open_study(cfg, time.time)
            token = open_secret(out / ADMIN_TOKEN)
            app = build_app(live, token)
            _report(cfg, live, sockets[0].getsockname()[1], token)
            try:
                serve(app, sockets)
            finally:  # of Ctrl-C, as a rule
                log(f"votes and opinions are in {out}")
        finally:
            sockets[0].close()
    return out


def open_study(cfg: ListenRun, clock: Callable[[], float]) -> LiveStudy:
    """The study of a configuration, with its songs and its database, by a clock in seconds since 1970."""
    out = Path(cfg.out)
    study = Study(
        name=cfg.name or out.resolve().name,
        mode=cfg.mode,
        trials=cfg.trials,
        excerpts=cfg.excerpts,
        consent=cfg.consent,
        mushra=cfg.mushra,
        limits=cfg.limits,
        origins=tuple(origin.rstrip("/") for origin in cfg.origins),
        seed=cfg.seed,
    )
    check_database(out)
    return LiveStudy(study, build_catalog(cfg), out, Database(out / DATABASE), clock)


def build_catalog(cfg: ListenRun) -> Catalog:
    """All songs of the study and how they are heard together. DataError where nothing can be compared."""
    out = Path(cfg.out)
    if not cfg.samples:
        raise DataError("nothing to listen to: name folders of songs, samples=[…]")
    names = system_names(cfg.samples, cfg.systems)
    songs = [
        song
        for folder, name in zip(cfg.samples, names, strict=True)
        for song in read_listened_songs(folder, name, out)
    ]
    if cfg.mode == "mushra":
        references = read_listened_songs(cfg.mushra.reference, "reference", out)
        all_songs, pages = mushra_pages(songs, references)
        catalog = Catalog(songs=all_songs, pages=pages)
    elif cfg.mode == "rating":
        catalog = Catalog(songs=tuple(songs))
    else:
        catalog = Catalog(songs=tuple(songs), pairs=song_pairs(songs, cfg.pairs))
    shortest = min(catalog.songs, key=lambda song: song.seconds)
    if shortest.seconds < 1:
        raise DataError(
            f"{shortest.key}: is {shortest.seconds:.2f} s long, and an excerpt needs at least 1 s; remove the song"
        )
    return catalog


def bind_address(host: str, port: int) -> socket.socket:
    """A socket at an address. ConfigError if another program has it, or it is none of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.socket(
        family, socket.SOCK_STREAM, socket.IPPROTO_TCP
    )  # else nothing turns off its delays
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind((host, port))
    except OSError as error:
        server.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port={port}: another program uses it; choose another, or port=0 for any free one"
            ) from None
        if error.errno == errno.EACCES:
            raise ConfigError(f"port={port}: needs more rights; choose one above 1023") from None
        raise ConfigError(
            f"host={host}: no address of this machine; try 127.0.0.1, or 0.0.0.0 for all"
        ) from None
    return server


def serve(app: Any, sockets: list[socket.socket]) -> None:
    """Answer requests until a signal ends it. Nothing is logged of requests: addresses hold tokens."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=3,
        timeout_keep_alive=30,
        limit_concurrency=1000,
        ws="none",
    )
    uvicorn.Server(config).run(sockets=sockets)


def _report(cfg: ListenRun, live: LiveStudy, port: int, token: str) -> None:
    """Log what is compared, and the addresses."""
    catalog = live.catalog
    systems = len({song.system for song in catalog.songs})
    items = {
        "pair": f"{len(catalog.pairs)} pairs",
        "rating": "one by one",
        "mushra": f"{len(catalog.pages)} pages",
    }
    log(f"{len(catalog.songs)} songs of {systems} systems, {items[cfg.mode]}; Ctrl-C ends the study for now")
    name = socket.gethostname() if cfg.host in EVERYWHERE else cfg.host
    address = f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
    log(f"listeners: {address}/")
    log(f"admin: {address}/admin#{token}")
    if cfg.host in EVERYWHERE:
        log("warning: without HTTPS others on the network can read along; see docs/howto/listen.md")
