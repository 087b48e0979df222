"""The programs that draw a run's curves, by their names in accelerate."""

from collections.abc import Sequence

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from diffdpo.errors import ConfigError
from diffdpo.registry import pick


def check_trackers(names: Sequence[str]) -> None:
    """ConfigError for a tracker that accelerate lacks: it would pass over it, and a run without its curves should
    not start."""
    available = {str(name) for name in get_available_trackers()}
    for name in names:
        pick("tracker", LOGGER_TYPE_TO_CLASS, name)
        if name not in available:
            raise ConfigError(f"train.trackers: {name} is not installed; pip install {name}, or leave it out")
