"""Notes which keys of a config the package reads, where the path to them begins at the whole config."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from ml_collections import ConfigDict

import moviegen

PACKAGE = str(Path(moviegen.__file__).parent)
# They read all of it, or what the jobs read.
COPIERS = tuple(
    f"{PACKAGE}/{name}" for name in ("config.py", "runner.py", "settings.py", "parallel/rules.py", "models/costs/")
)


@contextlib.contextmanager
def noted() -> Iterator[set[str]]:
    """A set of dotted keys, which grows by those that are read."""
    keys: set[str] = set()
    known: dict[int, tuple[ConfigDict, str]] = {}  # sections by identity, kept so that none is another later
    original = ConfigDict.__getitem__

    def getitem(self, key):
        value = original(self, key)
        frame = sys._getframe(1)
        while "ml_collections" in frame.f_code.co_filename:
            frame = frame.f_back
        place = known[id(self)][1] if id(self) in known else ""
        if isinstance(value, ConfigDict):
            known[id(value)] = (value, f"{place}{key}.")
        elif frame.f_code.co_filename.startswith(PACKAGE) and not frame.f_code.co_filename.startswith(COPIERS):
            keys.add(f"{place}{key}")
        return value

    with mock.patch.object(ConfigDict, "__getitem__", getitem):
        yield keys
