"""A room of the package imports rooms on lower floors alone, no two files need each other, and checks need no MindSpore."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import moviegen

ROOT = Path(moviegen.__file__).parent
# From the ground up; rooms of one line are side by side and do not see each other.
FLOORS = [
    ("errors", "streams", "settings"),
    ("config",),
    ("nn", "describe"),
    ("storage",),
    ("parallel",),
    ("models",),
    ("runner",),
    ("convert", "sweep"),
    ("text",),
    ("data",),
    ("evaluation",),
    ("training",),
    ("sampling",),
    ("demo",),
    ("jobs",),
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
WITH_MINDSPORE = ("nn", "parallel", "models", "training")
# What a config says by itself lies in these: they start without MindSpore, so that checks and planning are instant.
WITHOUT_MINDSPORE = (
    "runner",
    "describe",
    "parallel.mesh",
    "parallel.rules",
    "parallel.sharding",
    "models.transformer.shapes",
    "models.tae.shapes",
    "models.text.shapes",
    "models.costs.plan",
    "models.costs.summary",
    "jobs.plan",
)
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}
FILES = {name: path for name, path in FILES.items() if not name.endswith("__init__")}


def imported(path: Path) -> set[str]:
    """Whole names of what a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(names: set[str]) -> set[str]:
    """The files of the package among imported names, by their names below it."""
    below = {name.removeprefix("moviegen.") for name in names if name.startswith("moviegen.")}
    return {file for file in FILES if any(name == file or name.startswith(file + ".") for name in below)}


IMPORTED = {name: imported(path) for name, path in FILES.items()}
NEEDS = {name: ours(names) for name, names in IMPORTED.items()}


def room(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_lower_rooms_alone(name):
    climbs = [f for f in NEEDS[name] if room(f) != room(name) and LEVEL[room(f)] >= LEVEL[room(name)]]
    assert not climbs, f"{name} imports {', '.join(sorted(climbs))} of a room that is not below it"


def test_no_files_import_each_other():
    left = dict(NEEDS)
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"circles among {', '.join(left)}"


def asks_for_the_device(path: Path) -> bool:
    """Whether a file reads the flag; `--job=audit_ascend` may set it."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    flags = [node for node in nodes if "ON_ASCEND" in (getattr(node, "id", ""), getattr(node, "attr", ""))]
    return any(isinstance(flag.ctx, ast.Load) for flag in flags)


def test_operations_have_their_two_forms_in_one_file():
    """Where else the device matters, `kernels.form` is asked."""
    assert {name for name, path in FILES.items() if asks_for_the_device(path)} == {"nn.kernels"}


@pytest.mark.parametrize("name", [name for name in FILES if room(name) not in WITH_MINDSPORE])
def test_mindspore_is_imported_in_its_rooms_alone(name):
    assert not any(found.split(".")[0] == "mindspore" for found in IMPORTED[name])


def test_shapes_and_rules_need_no_mindspore():
    modules = ", ".join(f"moviegen.{name}" for name in WITHOUT_MINDSPORE)
    code = f"import sys, {modules}; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, check=False).returncode == 0


def test_every_room_has_a_floor():
    assert {room(name) for name in FILES} <= LEVEL.keys()


def opens_text(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Name):
        binary = any(isinstance(arg, ast.Constant) and "b" in str(arg.value) for arg in call.args[1:])
        return call.func.id == "open" and not binary
    path = (
        isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) != "files"
    )  # `files.write_text` is ours
    return path and call.func.attr in ("read_text", "write_text")


@pytest.mark.parametrize("path", [*FILES.values(), ROOT.parent / "launch.py"], ids=lambda path: path.stem)
def test_text_files_are_utf8_whatever_the_locale(path):
    calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    told = [any(word.arg == "encoding" for word in call.keywords) or call.lineno for call in calls if opens_text(call)]
    assert set(told) <= {True}
