"""The user's mistakes. The command line prints them as one line and exits with code 2."""


class UserError(Exception):
    """An error of the user: what is wrong, where, and how to mend it, in one line."""


class ConfigError(UserError):
    """A key, name or value of a configuration that cannot be right."""


class DataError(UserError):
    """A file that is missing, damaged or of another kind than asked for."""


class CheckpointError(UserError):
    """A checkpoint that does not fit the model, or was written by another run."""


def ensure(condition: bool, complaint: str) -> None:
    """ValueError unless the condition holds, for values of a configuration: its builder adds the location."""
    if not condition:
        raise ValueError(complaint)
