"""An experiment's settings as a page: each key with its value, its rule, and the comments of the files that set it."""

import ast
import io
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from moviegen import config as configs, settings

WIDTH = 120
COLUMN = 50  # where what is told of a value begins


class Entry(NamedTuple):
    """A place in a source where a key gets a value: `path` is as much of the key as is written around it."""

    path: tuple[str, ...]
    value: Any
    comment: str


def page(config: ConfigDict, file: str | Path) -> str:
    """Returns a line or more for each key of a config that `file` and the presets of `experiments/` made."""
    presets = [m.__file__ for name, m in sorted(sys.modules.items()) if name.startswith("experiments.")]
    found = [
        entry
        for path in (file, *presets)
        for entry in entries(Path(path).read_text(encoding="utf-8", errors="replace"))
    ]
    lines, before = [], ()
    for key, value in configs.flat(config).items():
        *sections, _ = parts = tuple(key.split("."))
        if sections[:1] != list(before[:1]):
            lines.append("")
        for depth in range(1, len(sections) + 1):
            comment = _comment(found, parts[:depth], None)
            if comment and tuple(sections[:depth]) != before[:depth]:
                head = f"# {'.'.join(sections[:depth])}: "
                lines += textwrap.wrap(head + comment, WIDTH, subsequent_indent="# ")
        before, rule = tuple(sections), settings.rule(key)
        told = "; ".join(filter(None, (rule.words if rule else "", _comment(found, parts, value))))
        shown = f"{key} = {value!r}"
        first = textwrap.wrap(told, WIDTH - COLUMN) or [""]
        if len(shown) >= COLUMN:
            lines.append(shown)
            shown = ""
        lines += [
            f"{head:{COLUMN}}{line}".rstrip() for head, line in zip([shown, *[""] * len(first)], first, strict=False)
        ]
    return "\n".join(lines).strip("\n")


def entries(source: str) -> list[Entry]:
    """Returns the keyword arguments and the assignments to attributes in a Python source, with their comments.

    A comment belongs to what begins on its line, or on the line below a comment that has its lines to itself.
    """
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens}
    rows = source.splitlines()

    def comment(node: ast.AST) -> str:
        first = node.lineno
        if rows[first - 1][: node.col_offset].strip():
            return ""
        above = first - 1
        while above in comments and rows[above - 1].lstrip().startswith("#"):
            above -= 1
        last = [node.end_lineno] if isinstance(node, ast.keyword) else [first]
        return " ".join(comments[line] for line in [*range(above + 1, first), *last] if line in comments)

    def walk(node: ast.AST, path: tuple[str, ...]) -> Iterator[Entry]:
        if isinstance(node, ast.keyword) and node.arg:
            path = (*path, node.arg)
            yield Entry(path, _literal(node.value), comment(node))
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Attribute):
                    names = tuple(ast.unparse(target).split(".")[1:])
                    yield Entry(names, _literal(node.value), comment(node))
        for child in ast.iter_child_nodes(node):
            yield from walk(child, path)

    return list(walk(ast.parse(source), ()))


def _comment(found: list[Entry], parts: tuple[str, ...], value: Any) -> str:
    """Returns the comment of the place that names most of a key; of equal ones that with the same value."""
    for length in range(len(parts), 0, -1):
        if places := [entry for entry in found if entry.path == parts[-length:]]:
            return next((entry.comment for entry in places if entry.value == value), places[0].comment)
    return ""


def _literal(node: ast.AST) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
