"""Features from a file, of networks that run elsewhere, such as MERT."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from diffdpo import audio, hub
from diffdpo.config_paths import PATH
from diffdpo.errors import DataError, reason
from diffdpo.types import Clip

VALUES_COLUMN = "features"


@dataclass(frozen=True)
class FileFeatures:
    """One vector a sound, from a file of .safetensors, .npz or .parquet (columns `sha256` and `features`).

    The keys are hashes of canonical sounds, `audio.pcm_sha256` of what `canonical` gives: scorers see nothing else.
    """

    version: ClassVar[str] = "1"
    licenses: ClassVar[tuple[str, ...]] = ("unknown",)

    path: str = field(default="", repr=False, metadata=PATH)
    """The file."""

    @property
    def weights_hash(self) -> str:
        return hub.sha256_of(self._file())

    def __call__(self, clip: Clip) -> Float[np.ndarray, " feature"]:
        key = audio.pcm_sha256(clip.samples, clip.sample_rate)
        vectors = read_vectors(self._file())
        if key not in vectors:
            raise DataError(f"{self.path}: no features of the sound {key[:16]}… (canonical form); add them")
        return vectors[key]

    def _file(self) -> Path:
        path = Path(self.path)
        if not self.path or not path.is_file():
            raise DataError(f"extractor 'file': {self.path or 'no path given'}: no such file; set path")
        return path


@cache
def read_vectors(path: Path) -> Mapping[str, Float[np.ndarray, " feature"]]:
    """The vectors of a file by hash, read once a process. DataError unless all are finite and of one length."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        if path.suffix == ".safetensors":
            vectors = load_file(path)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                vectors = {name: arrays[name] for name in arrays.files}
        elif path.suffix == ".parquet":
            vectors = _read_parquet(path)
        else:
            raise DataError(f"{path}: features are in .safetensors, .npz or .parquet")
        vectors = {name: np.asarray(vector, np.float64).reshape(-1) for name, vector in vectors.items()}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read as features ({reason(error)})") from None
    sizes = {len(vector) for vector in vectors.values()}
    if len(sizes) != 1:
        raise DataError(f"{path}: {'vectors of several lengths' if sizes else 'no vectors'}")
    if bad := [name for name, vector in vectors.items() if not np.isfinite(vector).all()]:
        raise DataError(f"{path}: {bad[0]}: numbers that are not finite")
    return vectors


def _read_parquet(path: Path) -> dict[str, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["sha256", VALUES_COLUMN])
    except pa.ArrowException as error:
        raise ValueError(str(error)) from None
    pairs = zip(table["sha256"].to_pylist(), table[VALUES_COLUMN].to_pylist(), strict=True)
    return {name: np.array(vector) for name, vector in pairs}
