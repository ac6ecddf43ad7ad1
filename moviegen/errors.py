"""Errors that a user can fix, printed as one line, without a traceback, exit code 2; and the end that a signal asked for."""

import signal


class ConfigError(Exception):
    """A wrong setting. The message names the key, the value, what was expected and the way out."""


class DataError(ConfigError):
    """A file that cannot be used. The message names the file (and line), the reason and the way out."""


class Stopped(Exception):
    """A run has ended in good order because of a signal; `code` is the exit code that shells expect after it."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.code = 128 + signum


class Found(Exception):
    """A job that looks for faults has found some and told them: printed as one line, without a traceback, exit code 1."""
