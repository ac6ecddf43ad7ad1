"""Names of others' arrays as our paths, by rules."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from moviegen.errors import ConfigError


def swap(name: str, pairs: Iterable[tuple[str, str]], back: bool = False) -> str:
    """Returns a name, dots for slashes, with every (ours, theirs) of `pairs` replaced in order; `back` undoes it."""
    name = name.replace("/", ".") + "."  # so that the last component ends with a dot, as all do
    for ours, theirs in reversed(tuple(pairs)) if back else pairs:
        name = name.replace(theirs, ours) if back else name.replace(ours, theirs)
    return name[:-1]


def strip_prefixes(arrays: Mapping[str, Any], components: str) -> dict[str, Any]:
    """Returns the arrays by their names without any leading run of `components` ("ema|network|model"), put by wrappers.

    Raises ConfigError where two names become one: the file then holds several sets of weights, say EMA beside plain.
    """
    origin: dict[str, str] = {}
    for name in arrays:
        short = re.sub(rf"^(?:(?:{components})\.)+", "", name)
        if short in origin:
            raise ConfigError(
                f"{origin[short]!r} and {name!r} are the same parameter of two sets of weights: pass the arrays of one "
                "of the two prefixes alone"
            )
        origin[short] = name
    return {short: arrays[name] for short, name in origin.items()}


def by_layers(
    names: Iterable[str], pattern: str, layer: Mapping[str, str], rest: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Returns {our path: name}, and the names that have no path.

    `pattern` finds a layer's number and the rest of the name, whose path below `blocks/NUMBER/` is in `layer`.
    """
    paths, unknown = {}, []
    for name in sorted(names):
        found = re.fullmatch(pattern, name)
        if found and found[2] in layer:
            paths[f"blocks/{found[1]}/{layer[found[2]]}"] = name
        elif name in rest:
            paths[rest[name]] = name
        else:
            unknown.append(name)
    return paths, unknown
