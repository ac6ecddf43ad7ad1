"""The folders of checkpoints, `step-00000042` and so on: which are whole, and the renames that make and remove one."""

import os
import re
import shutil
from pathlib import Path

from moviegen.storage.files import sync


def place(folder: str | Path) -> tuple[Path, int | None]:
    """Returns the folder of checkpoints, and the step if the path names one of them."""
    folder = Path(folder)
    named = re.fullmatch(r"step-(\d{8,})", folder.name)
    return (folder.parent, int(named[1])) if named else (folder, None)


def committed(folder: Path) -> dict[int, Path]:
    """Returns {step: folder} of the whole checkpoints."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("step-*")):  # `step-N` sorts before `step-N.old` and so wins
        match = re.fullmatch(r"step-(\d{8,})(\.old)?", path.name)
        if match and path.is_dir():
            found.setdefault(int(match[1]), path)
    return found


def commit(aside: Path, final: Path) -> None:
    """Renames the folder `aside`, which is whole, to `final`; one of that name is replaced, later steps are removed."""
    folder, step = place(final)
    for number, path in committed(folder).items():
        if number > step:
            discard(path)
    old = final.with_name(final.name + ".old")
    if final.exists():
        # Two renames, since a rename cannot replace a folder with files in it: between them `.old` is the checkpoint.
        if old.exists():
            discard(old)
        os.rename(final, old)
    os.rename(aside, final)
    sync(folder)
    if old.exists():
        discard(old)


def discard(path: Path) -> None:
    """Removes a checkpoint."""
    # A kill in the middle of rmtree must not leave half a checkpoint under a committed name.
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def leftovers(folder: Path) -> list[Path]:
    """Returns what kills left behind: half-written or half-removed folders, and replaced ones whose replacement is there."""
    replaced = [path for path in folder.glob("step-*.old") if path.with_suffix("").exists()]
    return [*folder.glob("step-*.tmp-*"), *replaced]
