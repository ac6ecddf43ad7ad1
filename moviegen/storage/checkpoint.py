"""Checkpoints: one array per parameter, committed by a single rename, verified when read.

A save writes `step-00000042.tmp-<token>`, syncs every file and renames the folder to `step-00000042`: what carries that
name is whole. Its manifest holds sizes and checksums of all files, itself included. One process saves at a time.
"""

import contextlib
import functools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from moviegen.errors import DataError
from moviegen.storage import arraystore, schema, step_folders, treestore
from moviegen.storage.files import reason, sync, unique, write_text

PATIENCE = 1800  # seconds that a rank waits for the others' files
_BACKGROUND = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")


def save(
    folder: str | Path,
    step: int,
    trees: Mapping[str, treestore.Tree],
    meta: Mapping[str, Any],
    rank: int = 0,
    ranks: int = 1,
    token: str = "",
) -> Path:
    """Writes one checkpoint, whole or not at all, and returns its folder `<folder>/step-<step>`.

    One of the same step is replaced, later ones are dropped: saving 30 after going back from 40 starts another history.

    Args:
        trees: {"params": {path: array}, "ema": ..., "opt/m": ...}: MindSpore tensors, numpy arrays or numbers, stored
            in their own shape and dtype, or `arraystore.Part`s where each of several ranks has a part.
        meta: anything JSON can hold.
        rank, ranks: all of them call this, each writes its own parts, and rank 0 commits when all have.
        token: the same on all ranks and new for every save: it tells this attempt from one that a kill cut short.

    Raises: DataError when the checkpoint cannot be written (a full disk), or has a number that is not finite; what was
    there before is then untouched.
    """
    if step < 0:
        raise ValueError(f"checkpoint.save: step={step} must be at least 0")
    final = Path(folder) / f"step-{step:08d}"
    aside = final.with_name(f"{final.name}.tmp-{token or unique()}")
    try:
        entries = _write(aside, trees, rank, ranks)
        if rank == 0:
            step_folders.write_manifest(aside, {"step": step, "meta": dict(meta), "trees": entries})
            for path, folders, names in os.walk(aside):
                if folders or step_folders.MANIFEST in names:  # tensorstore syncs the folders that hold its files
                    sync(Path(path))
            step_folders.commit(aside, final)
    except BaseException as error:
        if ranks > 1:
            with contextlib.suppress(OSError):
                _failed(aside).touch()
        if rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError | ValueError):
            previous = latest(final.parent)
            kept = "there is no earlier one" if previous is None else f"step {previous} is still there, untouched"
            raise DataError(f"{final}: cannot write the checkpoint ({reason(error)}); {kept}") from error
        raise
    return final


def prune(folder: str | Path, keep: int = 2, keep_every: int = 0, keep_best: bool = False) -> None:
    """Removes all checkpoints but the newest `keep`, those whose step `keep_every` divides, and the `best` if asked to."""
    if keep < 1:
        raise ValueError(f"checkpoint.prune: keep={keep} must be at least 1")
    committed = step_folders.committed(Path(folder))
    kept = {*sorted(committed)[-keep:], best(folder) if keep_best else None}
    for step, path in committed.items():
        if step not in kept and not (keep_every and step % keep_every == 0):
            step_folders.discard(path)


def in_background(work: Callable[[], Any]) -> Future:
    """Runs `work`, which saves, while the caller goes on; one at a time, in order. A process that ends waits for them.

    The arrays must be copies: a MindSpore tensor's numpy array on CPU is the tensor itself, which the next step changes.
    """
    return _BACKGROUND.submit(work)


def latest(folder: str | Path) -> int | None:
    """Returns the step of the newest whole checkpoint in `folder`, or None.

    Here as in `load` and `lazy` the folder may be a checkpoint itself, or the workdir of a run.
    """
    folder, named = step_folders.place(folder)
    return max((step for step in step_folders.committed(folder) if named in (None, step)), default=None)


def best(folder: str | Path) -> int | None:
    """Returns the first step with the lowest meta["score"], such as a held-out loss; None where none has a score."""
    scores: dict[int, float] = {}
    for step, path in sorted(step_folders.committed(step_folders.place(folder)[0]).items()):
        with contextlib.suppress(OSError, ValueError):  # one with a damaged manifest cannot be loaded either
            score = step_folders.read_manifest(path)["meta"].get("score")
            if schema.number(score):
                scores[step] = score
    return min(scores, key=scores.get, default=None)


def averaged(folder: str | Path, step: int | None = None) -> str:
    """Returns the tree of the weights to sample with or to start from: "ema", or "params" where there is no average."""
    return "ema" if "ema" in lazy(folder, step)[0] else "params"


def load(
    folder: str | Path,
    step: int | None = None,
    select: str | None = None,
    dtype: treestore.Dtype = None,
    where: Callable[[tuple[int, ...]], tuple[slice, ...]] | None = None,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Reads a checkpoint (the newest unless `step` is given) as ({tree: {path: numpy array}}, meta with its "step").

    `select` is a regular expression searched in "<tree>/<path>", such as "^ema/": nothing else is read. `dtype`, for all or
    by path, casts floating-point arrays. `where` gives for an array's shape the slice to read of it (sharding.bounds). All
    that is read is checked: DataError names the damaged array and the step to go back to.
    """
    committed, step = _find(folder, step)
    with _naming_the_way_back(committed, step):
        trees, meta = _describe(committed[step], step, select)
        return treestore.read(committed[step], trees, dtype, where), meta


def lazy(
    folder: str | Path, step: int | None = None, select: str | None = None
) -> tuple[dict[str, dict[str, arraystore.Lazy]], dict[str, Any]]:
    """Like `load`, but nothing is read yet: `numpy.asarray` reads and checks one of the arrays."""
    committed, step = _find(folder, step)

    def read(array: arraystore.Lazy, where: tuple[slice, ...] | None = None) -> np.ndarray:
        with _naming_the_way_back(committed, step):
            return array.read(where)

    with _naming_the_way_back(committed, step):
        trees, meta = _describe(committed[step], step, select)
    found = treestore.lazy(committed[step], trees)
    for arrays in found.values():
        arrays.update({name: array._replace(read=functools.partial(read, array)) for name, array in arrays.items()})
    return found, meta


def _find(folder: str | Path, step: int | None) -> tuple[dict[int, Path], int]:
    """Returns all checkpoints there are, and the step of the one that is asked for."""
    folder, named = step_folders.place(folder)
    committed = step_folders.committed(folder)
    if not committed:
        raise DataError(f"{folder}: no checkpoint here, expected a folder named step-<number>")
    step = next(n for n in (step, named, max(committed)) if n is not None)
    if step not in committed:
        raise DataError(f"{folder}: no checkpoint of step {step}, expected one of {sorted(committed)}")
    return committed, step


def _describe(path: Path, step: int, select: str | None) -> tuple[dict[str, dict], dict[str, Any]]:
    """Returns what the manifest says of the arrays that are asked for, and the meta."""
    found = step_folders.read_manifest(path)
    trees = found["trees"]
    if select is not None:
        chosen = {t: {n: e for n, e in tree.items() if re.search(select, f"{t}/{n}")} for t, tree in trees.items()}
        trees = {tree: entries for tree, entries in chosen.items() if entries}
        if not trees:
            raise DataError(f"{path}: no array matches select={select!r}; the trees are {sorted(chosen)}")
    return trees, {**found["meta"], "step": step}


@contextlib.contextmanager
def _naming_the_way_back(committed: Mapping[int, Path], step: int) -> Iterator[None]:
    """Turns damage into a DataError that names the newest whole checkpoint."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise DataError(f"{committed[step]}: {reason(error)}. {_way_back(committed, step)}") from error


def _write(aside: Path, trees: Mapping[str, treestore.Tree], rank: int, ranks: int) -> dict[str, dict]:
    """Writes this rank's parts to the folder `aside`; on rank 0, returns what the manifest says of all arrays.

    The ranks talk through files in that folder: rank 0 prepares the arrays and notes them in arrays.json, then each
    writes its parts and notes the files in rank-<rank>.json, and rank 0 collects those.
    """
    if rank == 0:
        aside.parent.mkdir(parents=True, exist_ok=True)
        sync(aside.parent.parent)
        step_folders.clean(aside.parent)
        aside.mkdir()
        write_text(json.dumps(treestore.create(aside, trees)), aside / "arrays.json")
    entries = _wait_for(aside / "arrays.json", aside)
    write_text(json.dumps(treestore.write(aside, trees, entries)), aside / f"rank-{rank}.json")
    if rank == 0:
        for other in range(ranks):
            for tree, name, written in _wait_for(aside / f"rank-{other}.json", aside):
                entries[tree][name]["files"] |= written
        for path in (aside / "arrays.json", *aside.glob("rank-*.json")):
            path.unlink()
    return entries


def _wait_for(path: Path, aside: Path) -> Any:
    """Returns the contents of a JSON file that another rank renames into place when it is whole."""
    deadline = time.monotonic() + PATIENCE
    while not path.is_file():
        if _failed(aside).exists():
            raise OSError("another rank could not write its part")
        if time.monotonic() > deadline:
            raise OSError(f"{path.name} of another rank did not come within {PATIENCE} s")
        time.sleep(0.02)
    return json.loads(path.read_text(encoding="utf-8"))


def _failed(aside: Path) -> Path:
    """Returns the path of the file that tells the other ranks that one has failed."""
    return aside.with_name(f"{aside.name}.failed")


def _way_back(committed: Mapping[int, Path], step: int) -> str:
    """Names the newest earlier checkpoint by manifests and files' sizes alone: arrays of a 30B model are 470 GB."""
    for number in sorted((n for n in committed if n < step), reverse=True):
        try:
            treestore.find(committed[number], step_folders.read_manifest(committed[number])["trees"])
        except (OSError, ValueError):
            continue
        return (
            f"Step {number} has all its files, and they have their sizes: load it, or remove {committed[step].name} and "
            "start again to resume from there"
        )
    return "No earlier checkpoint here has all its files"
