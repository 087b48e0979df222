"""Fit the critic, which is mined, and the second critic, which judges, to pairs that need no people.

    python tools/judges/fit_critics.py MANIFEST --corpus FOLDER [--work build/windows] [--minutes N] [--songs N]

Pairs are a window of a real song through the codec and a damaged version of it. Three more kinds are tried and not
learnt from: the window and what the tiny model makes of the song's style words, and what the model makes and what
it makes of the same noise with fewer steps, or without guidance. The critic learns from songs of the group
`critic`, the second one from `second_critic`, each from damages of its own; both are tried on songs of the group
`judge`. Descriptions lie in the work folder, as those of `fit_form.py` do; delete those of the second critic when
the judge of form was fitted anew, whose scale it shares.
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from diffdpo.preferences.heads import HeadFit, UtilityHead
from diffdpo.scorers.critic import CRITIC_FEATURES, CRITIC_PATH, critic_features
from diffdpo.scorers.features import ClipFeatures
from diffdpo.scorers.second_critic import (
    SECOND_CRITIC_FEATURES,
    SECOND_CRITIC_PATH,
    second_critic_features,
)
from tools.judges.fit_form import share
from tools.judges.song_windows import Describe, Row, Window, describe_windows, read_manifest, window_parser

Pairs = dict[str, tuple[str, str]]
MODEL_PAIRS: Pairs = {
    "real > generated": ("clean", "generated"),
    "6 > 2 steps": ("generated", "two steps"),
    "guidance 5 > 1": ("generated", "unguided"),
}
"""Only tried: what these teach is not what is better, as docs/theory/scorers.md says."""
DAMAGES: dict[str, Pairs] = {
    "critic": {
        "real > noisy latents": ("clean", "degraded"),
        "real > shuffled frames": ("clean", "frames shuffled"),
        "real > drifting pitch": ("clean", "drifting"),
        "real > latent seconds shuffled": ("clean", "shuffled in latents"),
    },
    "second": {
        "real > smeared latents": ("clean", "smeared"),
        "real > time jitter": ("clean", "jitter"),
        "real > doubled voices": ("clean", "doubled"),
        "real > seconds shuffled": ("clean", "shuffled"),
    },
}
GROUPS = {"critic": "critic", "second": "second_critic"}
PATHS = {"critic": CRITIC_PATH, "second": SECOND_CRITIC_PATH}
FEATURES = {"critic": CRITIC_FEATURES, "second": SECOND_CRITIC_FEATURES}


def describe_first(features: ClipFeatures) -> dict[str, np.ndarray]:
    """The features of the critic."""
    return {"critic": critic_features(features)}


def describe_second(features: ClipFeatures) -> dict[str, np.ndarray]:
    """The features of the second critic."""
    return {"second": second_critic_features(features)}


DESCRIBE: dict[str, Describe] = {"critic": describe_first, "second": describe_second}


def wanted_versions(row: Row) -> dict[str, Sequence[str]]:
    """The versions of a song's windows that either critic needs."""
    return {
        critic: sorted(versions_of(DAMAGES[critic] | (MODEL_PAIRS if row["group"] == "judge" else {})))
        for critic in DESCRIBE
        if row["group"] in (GROUPS[critic], "judge")
    }


def versions_of(pairs: Pairs) -> set[str]:
    """All versions in some kinds of pairs."""
    return {version for pair in pairs.values() for version in pair}


def fit(
    features: Mapping[str, np.ndarray], pairs: Pairs, songs: np.ndarray, settings: HeadFit
) -> UtilityHead:
    """A head from all kinds of pairs together; a song's pairs are drawn together."""
    first = np.concatenate([features[better] for better, _ in pairs.values()])
    second = np.concatenate([features[worse] for _, worse in pairs.values()])
    head = settings(first, second, np.tile(songs, len(pairs)), reference=features["clean"])
    return head.in_units_of(features["clean"])


def report(head: UtilityHead, features: Mapping[str, np.ndarray], pairs: Pairs, songs: np.ndarray) -> None:
    """How often the better of a pair has the higher utility, by kind, and how sure the head was."""
    for kind, (better, worse) in pairs.items():
        first, second = features[better], features[worse]
        accuracy = share(head.utility(first) > head.utility(second), songs)
        print(f"    {kind:24s} {accuracy}; mean probability {head.probability(first, second).mean():.2f}")


def fit_critic(critic: str, windows: Sequence[Window], settings: HeadFit) -> None:
    """Fit, report and write one of the two."""
    pairs = DAMAGES[critic]
    learnt, songs = feature_table(critic, GROUPS[critic], versions_of(pairs), windows)
    unseen, trial_songs = feature_table(critic, "judge", versions_of(pairs | MODEL_PAIRS), windows)
    head = fit(learnt, pairs, songs, settings)
    print(f"{critic}: {len(songs)} songs, {len(pairs)} kinds of pairs, {learnt['clean'].shape[1]} features")
    band = " ".join(f"{value:+.2f}" for value in np.percentile(head.utility(unseen["clean"]), [10, 50, 90]))
    print(f"  temperature {head.temperature:.2f}; lowest {head.lowest():.1f}")
    print(f"  on {len(trial_songs)} songs of the judge's group, band {band}:")
    report(head, unseen, pairs | MODEL_PAIRS, trial_songs)
    for kind in pairs:
        print(f"  fitted to {kind} alone:")
        single_head = fit(learnt, {kind: pairs[kind]}, songs, settings)
        report(single_head, unseen, pairs | MODEL_PAIRS, trial_songs)
    order = np.argsort(-np.abs(head.weights.mean(0)))[:12]
    print("  largest: " + ", ".join(f"{FEATURES[critic][k]} {head.weights.mean(0)[k]:+.2f}" for k in order))
    tensors = {f"critic.{key}": np.ascontiguousarray(a, np.float32) for key, a in head.tensors().items()}
    save_file(tensors, PATHS[critic])
    print(f"  {PATHS[critic].name}: {PATHS[critic].stat().st_size} bytes")


def feature_table(
    critic: str, group: str, versions: Collection[str], windows: Sequence[Window]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The features of a group's windows that were described in all these versions, and their songs."""
    complete = [
        window
        for window in windows
        if window.group == group and all(critic in window.arrays.get(version, {}) for version in versions)
    ]
    rows = {
        version: np.array([window.arrays[version][critic] for window in complete]) for version in versions
    }
    return rows, np.array([window.song for window in complete])


def main() -> None:
    parser = window_parser(__doc__)
    parser.add_argument("--songs", type=int, default=40, help="of each group, one window each")
    parser.add_argument("--l2", type=float, default=5.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for row in read_manifest(arguments.manifest):
        inside = sum(earlier["group"] == row["group"] for earlier in rows)
        if row["group"] in (*GROUPS.values(), "judge") and inside < arguments.songs:
            rows.append(row)
    windows = describe_windows(
        rows,
        arguments.corpus,
        arguments.work,
        wanted_versions,
        DESCRIBE,
        places=[1],
        deadline_s=60 * arguments.minutes,
    )
    all_windows = list(windows)
    for critic in DESCRIBE:
        fit_critic(critic, all_windows, HeadFit(l2=arguments.l2, caution=0.5))


if __name__ == "__main__":
    main()
