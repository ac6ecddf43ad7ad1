"""Experiments are Python files with a `get_config` function; this module loads, overrides, checks and writes them.

ml_collections.config_flags is not used for it: it gives `get_config` one text, checks no type inside a tuple, wants quotes
around a prompt, and has nothing that a sweep from Python could call.
"""

import ast
import difflib
import inspect
import json
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from moviegen import settings
from moviegen.errors import ConfigError


def load(spec: str) -> ConfigDict:
    """Returns the config of an experiment, `FILE.py` or `FILE.py:name,name=value`, locked.

    The signature of `get_config` says which arguments there are, its defaults their types; a bare `:tiny` means
    `tiny=True`. The key `name`, the file's stem with its arguments, is added. Raises ConfigError.
    """
    path_text, arg_text = split_spec(spec)
    path = Path(path_text)
    config = call_in_file(path, "get_config", lambda fn: fn(**_arguments(fn, arg_text, path_text)), "config file")
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path_text}: get_config returned {type(config).__name__}, expected a ConfigDict")
    config.unlock()
    config.name = re.sub(r"[^\w.=+-]+", "-", path.stem + ("-" + arg_text if arg_text else ""))
    return config.lock()


def split_spec(spec: str) -> tuple[str, str]:
    """Returns the file and the arguments of `FILE.py:arguments`; the name of a folder may have a colon too."""
    match = re.fullmatch(r"(.*?\.py)(?::(.*))?", spec, re.DOTALL)
    return match.groups("") if match else (spec, "")


def call_in_file(path: Path, function: str, call: Callable[[Callable], Any], what: str = "file") -> Any:
    """Executes a Python file and returns `call(its function)`; an error in the file is a ConfigError with its line."""
    try:
        if not path.is_file():
            near = nearest(path.name, [p.name for p in path.parent.glob("*.py")])
            raise ConfigError(f"{what} {path} {'is no file' if path.exists() else f'does not exist{near}'}")
    except OSError as error:  # of a name that is too long, of a folder that may not be looked into
        raise ConfigError(f"{what} {path}: {error.strerror}") from error
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:  # so that `from experiments import common` works from any folder
        sys.path.append(root)
    try:
        found = runpy.run_path(str(path), run_name=f"experiment_{path.stem}").get(function)
        if not callable(found):
            raise ConfigError(f"{path} has no function {function}()")
        return call(found)
    except ConfigError:
        raise
    except SyntaxError as error:  # also of a file that is not UTF-8, then without a line
        raise ConfigError(f"{error.filename or path}:{error.lineno or 1}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if Path(f.filename).resolve() == path.resolve()]
        line = f":{own[-1].lineno}" if own else ""
        raise ConfigError(f"{path}{line}: {type(error).__name__}: {error}") from error


def _arguments(fn: Callable, text: str, path: str) -> dict[str, Any]:
    known = {name: p.default for name, p in inspect.signature(fn).parameters.items()}
    shown = ", ".join(f"{name}={value}" for name, value in known.items()) or "none"
    arguments = {}
    for item in filter(None, text.split(",")):
        name, has_value, value = item.partition("=")
        if name not in known:
            raise ConfigError(f"{path} takes no argument {name!r}{nearest(name, known)}; it takes: {shown}")
        if not has_value and not isinstance(known[name], bool):
            raise ConfigError(f"{path}: argument {name!r} needs a value, as in :{name}={known[name]}")
        arguments[name] = _convert(f"argument {name}", value if has_value else "true", known[name])
    return arguments


def apply_overrides(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy of `config`, locked, with dotted keys set: `{"optim.learning_rate": "3e-4"}`.

    A value is text, read as the type that the key has now, or a Python value of that type. Raises ConfigError.
    """
    config = config.copy_and_resolve_references()
    leaves, values = flat(config), {}
    for key, value in overrides.items():
        if key not in leaves:
            inside = [leaf for leaf in leaves if leaf.startswith(key + ".")]
            if inside:
                raise ConfigError(f"config.{key} is a section: set one of its keys, such as config.{inside[0]}")
            raise ConfigError(f"config.{key} does not exist{nearest(key, leaves)}")
        values[key] = _convert(f"config.{key}", value, leaves[key])
    config.update_from_flattened_dict(values)
    return config.lock()


def refuse_hidden(config: ConfigDict, overrides: Iterable[str]) -> None:
    """Raises ConfigError where a stage's own section sets a key of `overrides` too, and hides it as it is not among them."""
    leaves, given = flat(config), set(overrides)
    for key in given:
        hiding = {leaf for leaf in leaves if re.fullmatch(rf"stages\.[^.]+\.{re.escape(key)}", leaf)} - given
        if hiding:
            own = " and ".join(f"config.{leaf} (it is {leaves[leaf]!r})" for leaf in sorted(hiding))
            raise ConfigError(f"config.{key} does not reach the stages that have their own: set {own} too")


def stage(config: ConfigDict, name: str) -> ConfigDict:
    """Returns the config of a stage, unlocked: the experiment's without `stages`, the stage's own section over it."""
    made = ConfigDict({key: value for key, value in config.to_dict().items() if key != "stages"})
    with made.ignore_type():  # which the key's rule looks at
        made.update(config.stages[name].to_dict())
    return made


def stages(config: ConfigDict) -> dict[str, tuple[ConfigDict, str]]:
    """Returns {name: (its config, its job)} of an experiment's stages in order; "" stands for a job of the demo's own.

    Raises ConfigError where `order` does not name each once.
    """
    own = [name for name in settings.STAGES if name in config.stages]
    order = config.get("order", (*own, *(name for name in config.stages if name not in own)))
    if sorted(order) != sorted(config.stages):
        raise ConfigError(f"order is {order}, expected each of the stages once: {', '.join(config.stages)}")
    return {
        name: (stage(config, name), config.stages[name].get("job") or settings.STAGES.get(name, "")) for name in order
    }


def flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns {dotted key: value} of a config."""
    found = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value}
    return found


def _convert(key: str, value: Any, current: Any) -> Any:
    """Returns `value` in the type of `current`; text is parsed."""
    kind = type(current)
    if isinstance(value, kind) and not isinstance(current, tuple) and not (kind is int and isinstance(value, bool)):
        return value
    try:
        if isinstance(current, bool):
            return {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
        if isinstance(current, int | float) and not isinstance(value, bool):
            if isinstance(value, str) or isinstance(current, float):
                return kind(value)
        if isinstance(current, tuple):
            return _convert_tuple(key, value, current or _example(key))
    except (ValueError, KeyError, TypeError, OverflowError):
        pass
    raise ConfigError(f"{key} is {value!r}, expected {_describe(current)}")


def _example(key: str) -> tuple:
    """Returns what an empty tuple could hold: its rule knows; of a key without one it is text."""
    rule = settings.rule(key.removeprefix("config."))
    return rule.example if rule and isinstance(rule.example, tuple) else ("",)


def _convert_tuple(key: str, value: Any, current: tuple) -> tuple:
    if isinstance(value, str):
        listed = _listed(value)
        if isinstance(current[0], str):  # one text may well contain commas, and begin with a bracket
            value = (value,) if listed is None or not all(isinstance(item, str) for item in listed) else listed
        else:
            value = value.split(",") if listed is None else listed
    return tuple(_convert(key, item, current[0]) for item in tuple(value))


def _listed(value: str) -> list | tuple | None:
    """Returns the list or tuple that a text in brackets is in Python, None where it is something else."""
    if value.strip()[:1] not in ("(", "["):
        return None
    try:
        found = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, list | tuple) else None


def _describe(value: Any) -> str:
    if isinstance(value, tuple):
        inside = f" of {_describe(value[0])} each" if value else ""
        return f"a tuple such as {','.join(map(str, value)) or 'a,b'}{inside}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(type(value), type(value).__name__)


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Takes the `--config.key=value` (or `--config.key value`) arguments out of a command line."""
    rest, overrides = [], {}
    items = iter(argv)
    for item in items:
        match = re.match(r"--?config\.([^=]+)(?:=(.*))?$", item, re.DOTALL)
        if not match:
            rest.append(item)
            continue
        value = match[2] if match[2] is not None else next(items, None)
        if value is None or (match[2] is None and value.startswith("--")):
            raise ConfigError(f"{item} has no value: write {item}=VALUE")
        overrides[match[1]] = value
    return rest, overrides


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Returns `" (did you mean 'x'?)"` or an empty text; of a dotted name the last piece alone may match as well."""
    candidates = list(candidates)
    found = difflib.get_close_matches(name, candidates, n=1, cutoff=0.7)
    if not found:
        by_last = {c.rpartition(".")[2]: c for c in candidates}
        found = [by_last[m] for m in difflib.get_close_matches(name.rpartition(".")[2], by_last, n=1, cutoff=0.7)]
    return f" (did you mean {found[0]!r}?)" if found else ""


def to_plain(config: ConfigDict) -> dict:
    """Returns the config as JSON holds it: nested dicts, tuples as lists."""
    return json.loads(config.to_json())


def changes(old: Mapping, new: Mapping, prefix: str = "") -> list[str]:
    """Returns what differs between two plain configs, one `key: old -> new` for each key."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += changes(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {json.dumps(before)} -> {json.dumps(after)}")
    return lines
