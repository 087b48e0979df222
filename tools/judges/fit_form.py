"""Fit `structure.order`, which is mined, and the judge `form.order`, which is not, to windows of real songs.

    python tools/judges/fit_form.py MANIFEST --corpus FOLDER [--work build/windows] [--minutes N]

The mined axis learns from the songs of the groups `targets` and `critic`, the judge from those of `second_critic`;
songs of the group `judge` are scored and never fitted. Descriptions of windows lie in the work folder, so that the
tool can be stopped, given more minutes and continued; the fit itself takes seconds. It writes the weights of the
package and prints what falls below the window that it was made of.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from diffdpo.preferences.heads import HeadFit
from diffdpo.scorers.features import ClipFeatures
from diffdpo.scorers.form import FORM_PATH, layer_moments, note_moments, standardise_layers
from diffdpo.scorers.order import ORDER_PATH, FormUtility, window_facts
from diffdpo.scorers.self_similarity import FACTS, half_second_means
from diffdpo.scorers.structure import FRAME_RATE, structure_frames
from tools.judges.song_windows import Describe, Row, Window, describe_windows, read_manifest, window_parser

Table = Mapping[str, np.ndarray]
VERSIONS = ("clean", "shuffled", "loop")
"""Versions that the weights are fitted to."""
CONTROLS = ("shuffled in latents", "loop of 2 s", "noise")
"""Versions that are only scored, of the songs of the judge's group."""
GROUPS = {"order": ("targets", "critic"), "form": ("second_critic",)}
PATHS = {"order": ORDER_PATH, "form": FORM_PATH}
FLOOR_SHARE = 5
SMALLEST_SHARE, CONSTANT = 1e-3, 1e6


def describe_sound(features: ClipFeatures) -> dict[str, np.ndarray]:
    """Moments of chroma and timbre."""
    return {"sound": half_second_means(structure_frames(features), FRAME_RATE).astype(np.float32)}


def describe_networks(features: ClipFeatures) -> dict[str, np.ndarray]:
    """Moments of notes and of musicnn's layers."""
    return {
        "notes": note_moments(features).astype(np.float16),
        "layers": layer_moments(features).astype(np.float16),
    }


DESCRIBE: dict[str, Describe] = {"order": describe_sound, "form": describe_networks}


def wanted_versions(row: Row) -> dict[str, Sequence[str]]:
    """What of a song's windows is described: by sound always, by networks where the judge learns or is tried."""
    versions = VERSIONS + CONTROLS * (row["group"] == "judge")
    return {
        axis: versions for axis in DESCRIBE if axis == "order" or row["group"] in (*GROUPS[axis], "judge")
    }


def facts_of(arrays: Table, layer_scale: Sequence[np.ndarray]) -> np.ndarray:
    """The facts of a version of a window: of networks where there is a scale for musicnn's, else of sound."""
    if not layer_scale:
        return window_facts(arrays["sound"].astype(float))[0]
    layers = standardise_layers(arrays["layers"].astype(float), *layer_scale)
    return window_facts(arrays["notes"].astype(float), layers)[0]


def layer_scale_of(windows: Sequence[Window]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of musicnn's features over moments; what hardly moves counts as constant."""
    moments = np.concatenate([window.arrays["clean"]["layers"] for window in windows]).astype(float)
    deviation = moments.std(0)
    return moments.mean(0), np.where(deviation > SMALLEST_SHARE * deviation.max(), deviation, CONSTANT)


def fit(facts: Table, packages: np.ndarray, names: Sequence[str]) -> FormUtility:
    """The heads, each in standard deviations of real windows, and the floor below which a song is like a loop."""
    fit_head = partial(HeadFit(), groups=packages, reference=facts["clean"])
    order = fit_head(facts["clean"], facts["shuffled"]).in_units_of(facts["clean"])
    loops = fit_head(facts["clean"], facts["loop"]).in_units_of(facts["clean"])
    for name, head in (("order", order), ("loops", loops)):
        weights = ", ".join(f"{fact} {w:+.2f}" for fact, w in zip(names, head.weights.mean(0), strict=True))
        print(f"  {name}: {weights}; temperature {head.temperature:.2f}")
    return FormUtility(
        order=order,
        loops=loops,
        floor=float(np.percentile(loops.utility(facts["clean"]), FLOOR_SHARE)),
    )


def share(falls: np.ndarray, songs: np.ndarray) -> str:
    """A share with its 95 % bootstrap interval over songs."""
    rng, names = np.random.default_rng(0), np.unique(songs)
    means = np.array([falls[songs == name].mean() for name in names])
    draws = [means[rng.integers(len(names), size=len(names))].mean() for _ in range(2000)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{100 * means.mean():4.0f} % ({100 * low:.0f} {100 * high:.0f})"


def report(utility: FormUtility, facts: Table, group: np.ndarray, song: np.ndarray) -> None:
    """Bands and shares that fall, group by group; a version's rows are NaN where it was not described."""
    for name in np.unique(group):
        inside = group == name
        real = utility(facts["clean"][inside])
        band = " ".join(f"{value:+.2f}" for value in np.percentile(real, [10, 50, 90]))
        print(f"  {name:14s} {len(set(song[inside]))} songs, {inside.sum()} windows; band {band}")
        for version, values in facts.items():
            present = np.isfinite(values[inside]).all(1)
            if version != "clean" and present.any():
                fall = real[present] - utility(values[inside][present])
                print(
                    f"    {version:20s} falls in {share(fall > 0, song[inside][present])}, by {fall.mean():.2f}"
                )


def fit_axis(axis: str, windows: Sequence[Window]) -> None:
    """Fit, report and write the weights of one of the two."""
    windows = [w for w in windows if all(DESCRIPTION[axis] in w.arrays.get(v, {}) for v in VERSIONS)]
    group, song = np.array([w.group for w in windows]), np.array([w.song for w in windows])
    training = np.isin(group, GROUPS[axis])
    scale: Sequence[np.ndarray] = ()
    if axis == "form":
        scale = layer_scale_of([w for w, inside in zip(windows, training, strict=True) if inside])
    names = FACTS if not scale else [f"{part}.{fact}" for part in ("notes", "layers") for fact in FACTS]
    facts = {}
    for version in VERSIONS + CONTROLS:
        tables = [w.arrays.get(version, {}) for w in windows]
        rows = [
            facts_of(table, scale) if DESCRIPTION[axis] in table else np.full(len(names), np.nan)
            for table in tables
        ]
        facts[version] = np.array(rows)
    packages = np.array([f"{w.package}|{w.artist}" for w in windows])
    print(f"{axis}: {training.sum()} windows of {len(set(song[training]))} songs")
    utility = fit({v: facts[v][training] for v in VERSIONS}, packages[training], names)
    report(utility, facts, group, song)
    tensors = {f"order.{key}": array for key, array in utility.order.tensors().items()}
    tensors |= {f"loops.{key}": array for key, array in utility.loops.tensors().items()}
    tensors["floor"] = np.array([utility.floor])
    if scale:
        tensors["layer_center"], tensors["layer_scale"] = scale
    PATHS[axis].parent.mkdir(parents=True, exist_ok=True)
    save_file({key: np.ascontiguousarray(array, np.float32) for key, array in tensors.items()}, PATHS[axis])
    print(f"  lowest {utility.lowest:.2f}; {PATHS[axis].name}: {PATHS[axis].stat().st_size} bytes")


DESCRIPTION = {"order": "sound", "form": "layers"}
"""An array that a window needs for the axis."""


def main() -> None:
    parser = window_parser(__doc__)
    parser.add_argument("--places", type=int, nargs="+", default=[1, 0], help="windows of each song")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    windows = list(
        describe_windows(
            read_manifest(arguments.manifest),
            arguments.corpus,
            arguments.work,
            wanted_versions,
            DESCRIBE,
            arguments.places,
            deadline_s=60 * arguments.minutes,
        )
    )
    for axis in DESCRIBE:
        fit_axis(axis, windows)


if __name__ == "__main__":
    main()
