"""Errors that a user can fix: printed as one line, without a traceback, exit code 2."""


class ConfigError(Exception):
    """A wrong setting. The message names the key, the value, what was expected and the way out."""


class DataError(ConfigError):
    """A file that cannot be used. The message names the file (and line), the reason and the way out."""
