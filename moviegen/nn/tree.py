"""Parameter trees: one flat dict, path -> array; a path such as `blocks/3/attn/q` is also the name in a checkpoint."""

from collections.abc import Mapping
from typing import Any

from moviegen.errors import ConfigError

Tree = dict[str, Any]


def sub(params: Mapping[str, Any], prefix: str) -> Tree:
    """The subtree below `prefix`, with the prefix taken off its paths."""
    start = prefix + "/"
    return {path[len(start) :]: value for path, value in params.items() if path.startswith(start)}


def join(trees: Mapping[str, Mapping[str, Any]]) -> Tree:
    """One tree out of several, each below its prefix: the inverse of `sub`."""
    return {f"{prefix}/{path}": value for prefix, tree in trees.items() for path, value in tree.items()}


def check_paths(params: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises ConfigError unless these are the paths of the parameters that a config wants."""
    if params.keys() != wanted.keys():
        raise ConfigError(
            f"the parameters are not of this config: missing {sorted(wanted.keys() - params.keys())}, "
            f"unknown {sorted(params.keys() - wanted.keys())}"
        )


def match(found: Mapping[str, Any], unknown: list[str], wanted: Mapping[str, tuple[int, ...]], hint: str) -> None:
    """Raise one ConfigError that names every missing, extra and wrongly shaped parameter, if there is any."""
    missing = sorted(wanted.keys() - found.keys())
    extra = sorted([*unknown, *(found.keys() - wanted.keys())])
    wrong = [
        f"{path} is {tuple(found[path].shape)}, expected {shape}"
        for path, shape in wanted.items()
        if path in found and tuple(found[path].shape) != shape
    ]
    problems = [("missing", missing), ("extra", extra), ("wrong shape", wrong)]
    if any(names for _, names in problems):
        text = "; ".join(f"{title}: {', '.join(names)}" for title, names in problems if names)
        raise ConfigError(f"the weights do not fit the config: {text}{hint}")
