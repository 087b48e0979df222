"""Presets: the YAML files that ship with the package, found by name.

In an installed package they are `diffdpo/presets`, in a checkout `configs`. The file FOLDER/VERB_NAME.yaml is
the preset FOLDER/NAME of its verb; FOLDER/VERB.yaml is FOLDER/VERB. Files of a series keep their whole name:
FOLDER/musicrl_r.yaml is FOLDER/musicrl_r. Files of the folders accelerate and deepspeed configure these launchers,
no verb.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diffdpo.errors import ConfigError
from diffdpo.registry import closest
from diffdpo.text_files import read_text

LAUNCHERS = ("accelerate", "deepspeed")
DEFAULTS = {"demo": "tiny/demo"}
"""The preset of a verb that is called without one; other verbs then have the defaults of their dataclass."""
RELATED_VERBS = {"round": ("demo",)}
"""Verbs that take the presets of other verbs as well, since they share a dataclass."""
SERIES = {"musicrl": "round"}
"""Words that begin the names of presets that belong together, and their verb."""
SUFFIX = ".yaml"


@dataclass(frozen=True)
class Preset:
    """One file of presets."""

    name: str
    """The name on the command line: tiny/dpo."""
    verb: str
    """The verb that the preset configures; or accelerate or deepspeed."""
    path: Path

    @property
    def headline(self) -> str:
        """The comment in the first line of the file, which says what the preset is for."""
        first = read_text(self.path).split("\n")[0]
        return first.removeprefix("#").strip() if first.startswith("#") else ""


def folder() -> Path:
    """The folder of the presets."""
    package = Path(__file__).parent
    wheel_folder = package / "presets"
    return wheel_folder if wheel_folder.is_dir() else package.parent / "configs"


def all_presets() -> Iterator[Preset]:
    """All presets, by folder and name."""
    for path in sorted(folder().glob("*/*")):
        if path.suffix not in (SUFFIX, ".json"):
            continue
        group = path.parent.name
        if group in LAUNCHERS:
            yield Preset(f"{group}/{path.stem}", group, path)
            continue
        verb, _, suffix = path.stem.partition("_")
        if verb in SERIES:
            yield Preset(f"{group}/{path.stem}", SERIES[verb], path)
            continue
        yield Preset(f"{group}/{suffix or verb}", verb, path)


def find_preset(verb: str, name: str) -> Path:
    """The file that `diffdpo VERB NAME` means: the path as given, else the preset of that name.

    ConfigError if there is neither, or if the preset is for another verb.
    """
    if Path(name).is_file():
        return Path(name)
    presets = list(all_presets())
    for preset in presets:
        if _matches(preset, name) and preset.verb in (verb, *RELATED_VERBS.get(verb, ())):
            return preset.path
    names = [preset.name for preset in presets if preset.verb in (verb, *RELATED_VERBS.get(verb, ()))]
    for preset in presets:
        if _matches(preset, name):
            hint = closest(name, names) or (f" Presets of {verb}: {', '.join(names)}." if names else "")
            raise ConfigError(f"{name} is a preset of `diffdpo {preset.verb}`, not of {verb}.{hint}")
    raise ConfigError(
        f"{name}: no such configuration, and no preset of this name.{closest(name, names)} "
        "`diffdpo presets` lists them"
    )


def _matches(preset: Preset, name: str) -> bool:
    """Whether a name means a preset: FOLDER/NAME, or its file FOLDER/VERB_NAME with or without suffix."""
    file = f"{preset.path.parent.name}/{preset.path.stem}"
    return name in (preset.name, file, f"{file}{SUFFIX}")


def default(verb: str) -> Path | None:
    """The preset of a verb that is called without one, if it has one."""
    return find_preset(verb, DEFAULTS[verb]) if verb in DEFAULTS else None


def title(path: Path) -> str:
    """The name of a file in errors: a preset's path below the folder of presets, another file's full path."""
    return path.relative_to(folder()).as_posix() if path.is_relative_to(folder()) else str(path)


def command_that_makes(output: str) -> str:
    """The command whose preset writes an output folder, such as `diffdpo mine tiny/mine`; empty for none."""
    for preset in all_presets():
        if preset.verb in LAUNCHERS or preset.path.suffix != SUFFIX:
            continue
        lines = read_text(preset.path).split("\n")
        if any(line.split("#")[0].strip() == f"out: {output}" for line in lines):
            return f"diffdpo {preset.verb} {preset.name}"
    return ""


def deepspeed_file(name: str) -> str:
    """The path of the DeepSpeed file that a launcher's preset names, in any working directory.

    The presets of accelerate name the file relative to a checkout, `configs/deepspeed/zero2.json`. A name of an
    existing file is returned as it is.
    """
    preset_file = folder() / "deepspeed" / Path(name).name
    return str(preset_file) if name and not Path(name).is_file() and preset_file.is_file() else name
