"""The command `presets`: list the presets that ship with the package, print the path of one, or copy all."""

import shutil
from pathlib import Path

from diffdpo.errors import ConfigError
from diffdpo.presets import LAUNCHERS, all_presets, folder
from diffdpo.registry import closest


def list_presets() -> list[str]:
    """A line a preset: the command that runs it, and what it is for."""
    lines = []
    for preset in all_presets():
        if preset.path.suffix != ".yaml":
            continue
        command = preset.name if preset.verb in LAUNCHERS else f"diffdpo {preset.verb} {preset.name}"
        lines.append(f"{command:36}  {preset.headline}")
    return lines


def preset_path(name: str) -> Path:
    """The file of a preset; ConfigError for a name that is none."""
    paths = {preset.name: preset.path for preset in all_presets()}
    if name not in paths:
        raise ConfigError(f"{name}: no such preset.{closest(name, paths)} `diffdpo presets` lists them")
    return paths[name]


def copy_presets(target: Path) -> None:
    """All presets in a folder of the user's, to be changed there. Nothing is overwritten."""
    if target.exists():
        raise ConfigError(f"{target}: exists; choose another folder")
    shutil.copytree(folder(), target)
