"""`python -m benchmarks.checkpoints [FOLDER]`: saves and loads a training state of 2 GB, beside dd with the same bytes.

dd writes them from memory with conv=fsync; before anything is read, its files leave the page cache. The last lines are
what a run feels of a save in the background. FOLDER (default: here) says which disk.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

ROUNDS = 5
MODEL = dict(size="1b", num_layers=3)
CONFIG = ConfigDict({"ema": {"decay": 0.9}, "train": {"keep_checkpoints": 1, "keep_every": 0, "keep_best": False}})


def main(folder: str = ".") -> None:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        place, seconds = Path(place), {}
        size, count, stall, whole = writes(place, seconds)
        reads(place, seconds)  # by now the state is gone: a run that starts again holds nothing when it loads
    print(f"{size / 1e9:.2f} GB in {count} arrays, {ROUNDS} rounds, load {os.getloadavg()[0]:.1f}; GB/s")
    for ours, theirs in (("save", "dd write"), ("load", "dd read"), ("load", "numpy read")):
        for which, of in (("best", min), ("median", statistics.median)):
            rate = {name: size / of(seconds[name]) / 1e9 for name in (ours, theirs)}
            print(f"{which:6} " + ", ".join(f"{k} {v:.2f}" for k, v in rate.items()), end="")
            print(f", ratio {rate[ours] / rate[theirs]:.2f}")
    print(f"save in the background: training waits {stall:.2f} s of {whole:.2f} s")
    print("all rounds, seconds: " + "; ".join(f"{k} {', '.join(f'{s:.2f}' for s in v)}" for k, v in seconds.items()))


def writes(place: Path, seconds: dict[str, list[float]]) -> tuple[int, int, float, float]:
    """Bytes and number of arrays; how long a run waits for a save in the background, and how long that takes in all."""
    from moviegen.nn import backend
    from moviegen.parallel.mesh import ONE
    from moviegen.storage import checkpoint
    from moviegen.training import state as states

    state, shapes = make_state()
    trees = {"params": state.master, "ema": state.ema, "opt/m": state.moments["m"], "opt/v": state.moments["v"]}
    trees = {tree: backend.to_numpy(values) for tree, values in trees.items()}  # the same memory
    arrays = [array for values in trees.values() for array in values.values()]
    memory = os.memfd_create("bytes")
    for array in arrays:
        os.write(memory, array)
    for step in range(ROUNDS):
        with timed("dd write", place, seconds):
            dd(f"/proc/self/fd/{memory}", place / "dd", "conv=fsync", pass_fds=[memory])
        with timed("save", place, seconds):
            checkpoint.save(place / "c", step, trees, {})
            checkpoint.prune(place / "c", keep=1)
    os.close(memory)
    start = time.perf_counter()
    saving = states.save(place / "c", ROUNDS, state, {}, CONFIG, states.Layout(shapes, ONE, 3))
    stall = time.perf_counter() - start
    saving.result()
    return sum(array.nbytes for array in arrays), len(arrays), stall, time.perf_counter() - start


def reads(place: Path, seconds: dict[str, list[float]]) -> None:
    """Beside dd also numpy, with as many threads: new memory for every byte, and no byte checked."""
    from moviegen.storage import checkpoint, treestore

    shares = np.linspace(0, (place / "dd").stat().st_size // 4, 65).astype(int)

    def share(i: int) -> np.ndarray:
        return np.fromfile(place / "dd", np.float32, shares[i + 1] - shares[i], offset=4 * shares[i])

    for _ in range(ROUNDS):
        with timed("dd read", place, seconds):
            dd(place / "dd", "/dev/null")
        with timed("load", place, seconds):
            checkpoint.load(place / "c")
        with timed("numpy read", place, seconds), ThreadPoolExecutor(treestore.WORKERS) as pool:
            list(pool.map(share, range(64)))


@contextlib.contextmanager
def timed(name: str, place: Path, seconds: dict[str, list[float]]) -> Iterator[None]:
    """Notes how long something takes of which nothing is in the page cache."""
    evict(place)
    start = time.perf_counter()
    yield
    seconds.setdefault(name, []).append(time.perf_counter() - start)


def make_state():
    """The state of MODEL, three layers of the 1B model, as a run holds it, with random bits; and the shapes."""
    from experiments import common
    from moviegen.models.transformer import model as transformer
    from moviegen.nn import backend
    from moviegen.training.state import State

    shapes = transformer.shapes(common.transformer(**MODEL))
    rng = np.random.default_rng(0)

    def tree():
        return backend.to_tensors({path: rng.random(shape, np.float32) for path, shape in shapes.items()})

    master = tree()
    return State(master, master, tree(), {"m": tree(), "v": tree()}), shapes


def dd(source: str | Path, target: str | Path, *more: str, pass_fds: tuple | list = ()) -> None:
    subprocess.run(
        ["dd", f"if={source}", f"of={target}", "bs=16M", "status=none", *more], check=True, pass_fds=pass_fds
    )


def evict(folder: Path) -> None:
    """Brings what lies below a folder to the disk and takes it out of the page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


if __name__ == "__main__":
    main(*sys.argv[1:])
