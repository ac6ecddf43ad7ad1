"""Parameter trees: one flat dict, path -> array.

A path such as `blocks/3/self_attn/q` is at once the key in memory, the name in a checkpoint and what a regex selects, so
nothing has to be flattened or rebuilt between the model, the optimizer and the disk.
"""

import re
from collections.abc import Mapping
from typing import Any

Tree = dict[str, Any]


def sub(params: Mapping[str, Any], prefix: str) -> Tree:
    """The subtree below `prefix`, with the prefix taken off its paths."""
    start = prefix + "/"
    return {path[len(start) :]: value for path, value in params.items() if path.startswith(start)}


def join(trees: Mapping[str, Mapping[str, Any]]) -> Tree:
    """One tree out of several, each below its prefix: the inverse of `sub`."""
    return {f"{prefix}/{path}": value for prefix, tree in trees.items() for path, value in tree.items()}


def select(params: Mapping[str, Any], pattern: str) -> Tree:
    """The entries whose path contains a match of the regular expression `pattern`."""
    regex = re.compile(pattern)
    return {path: value for path, value in params.items() if regex.search(path)}


def count(params: Mapping[str, Any]) -> int:
    """Number of scalar weights in the tree."""
    total = 0
    for value in params.values():
        size = 1
        for n in value.shape:
            size *= n
        total += size
    return total
