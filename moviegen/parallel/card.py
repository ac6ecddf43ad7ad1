"""Checks of a card and what surrounds it, each by itself, from the driver to a product, a collective and the disk.

Those of Ascend alone have never run, for want of a card; on a CPU they are skipped and say so.
"""

import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mindspore as ms
import numpy as np

from moviegen.nn import backend, layers, layerwise, runtime
from moviegen.parallel import collectives, sync
from moviegen.parallel.mesh import Group, Mesh

MINDSPORE = "2.10"  # what this package is written for
DRIVER = Path("/usr/local/Ascend/driver/version.info")
DISK_BYTES = 1 << 26
MESSAGE = 1 << 24  # values of the collective that is timed: 64 MB


class Failed(Exception):
    """A check has failed; the text says how."""


class Skipped(Exception):
    """A check does not apply here; the text says why."""


class Result(NamedTuple):
    """What one check found: outcome "ok", "failed" or "skipped", and for a failed one what to do."""

    name: str
    outcome: str
    found: str
    mend: str = ""


def run(mesh: Mesh, workdir: Path) -> list[Result]:
    """Runs every check, whatever became of those before it; on a mesh all ranks call this."""
    results = []
    for name, (check, mend) in CHECKS.items():
        try:
            results.append(Result(name, "ok", check(mesh, workdir)))
        except Skipped as skipped:
            results.append(Result(name, "skipped", str(skipped)))
        except Exception as error:
            text = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
            results.append(Result(name, "failed", " ".join(text.split())[:500], mend))
    return results


def failing(results: list[Result], world: Group) -> dict[str, list[int]]:
    """Which checks failed on which ranks, the same on every rank."""
    mine = np.float32([[result.outcome == "failed" for result in results]])
    try:
        everyone = collectives.all_gather(world)(backend.tensor(mine)).asnumpy()
    except Exception:  # as the check of collectives has told
        everyone = np.concatenate([np.zeros((world.rank, mine.size)), mine])
    return {
        r.name: np.flatnonzero(column).tolist() for r, column in zip(results, everyone.T, strict=True) if any(column)
    }


def _packages(mesh, workdir):
    found = f"Python {platform.python_version()}, MindSpore {ms.__version__}, numpy {np.__version__}"
    if not ms.__version__.startswith(f"{MINDSPORE}."):
        raise Failed(f"{found}: expected MindSpore {MINDSPORE}")
    return found


def _driver(mesh, workdir):
    found = _cards()
    if not DRIVER.is_file():
        raise Failed(f"{len(found)} cards, but no {DRIVER}")
    return f"{len(found)} cards, driver {_version(DRIVER)}"


def _cann(mesh, workdir):
    _cards()
    from mindspore.run_check._check_version import AscendEnvChecker

    home = os.environ.get("ASCEND_HOME_PATH")
    if not home:
        raise Failed("ASCEND_HOME_PATH is not set")
    found, known = _version(Path(home) / "compiler" / "version.info"), AscendEnvChecker("").version
    if not any(found.startswith(f"{version}.") or found == version for version in known):
        raise Failed(f"CANN {found} in {home}: MindSpore {ms.__version__} knows {', '.join(known)}")
    kernels = Path(os.environ.get("ASCEND_OPP_PATH", f"{home}/opp"), "built-in/op_impl/ai_core/tbe/kernel")
    if not kernels.is_dir():
        raise Failed(f"CANN {found}, but no {kernels}: its package of kernels is missing")
    missing = [name for name in ("te", "hccl") if importlib.util.find_spec(name) is None]
    if missing:
        raise Failed(f"CANN {found}, but Python finds no {' and no '.join(missing)}, which come with it")
    return f"CANN {found} in {home}, with its kernels"


def _device(mesh, workdir):
    if backend.device() == "Ascend":
        properties = ms.hal.get_device_properties(0)
        name, gib = ms.hal.get_device_name(0), 2**30
        if not runtime.WITH_BFLOAT16.search(name):
            raise Failed(f"{name} has neither bfloat16 nor the attention kernel")
        return f"{name}, {properties.free_memory / gib:.1f} of {properties.total_memory / gib:.1f} GiB are free"
    if runtime.cards():
        raise Failed(f"MindSpore takes the CPU, though there are {', '.join(runtime.cards())}")
    raise Skipped("MindSpore runs on the CPU")


def _product(mesh, workdir):
    dtype, size = _dtype(), 4096 if backend.device() == "Ascend" else 512
    x, w = (np.random.default_rng(i).standard_normal((size, size), dtype=np.float32) for i in range(2))
    fn = _product_of(dtype)
    args = {"w": ms.Tensor(w)}, ms.Tensor(x)
    y = layerwise.run(fn, *args).asnumpy()
    _compare("a product", y, x.astype(np.float64) @ w.T.astype(np.float64), dtype)
    start = time.perf_counter()
    for _ in range(10):
        y = layerwise.run(fn, *args)
    y.asnumpy()
    rate = 20 * size**3 / (time.perf_counter() - start) / 1e12
    return f"{dtype}, {size} x {size}: {rate:.3g} TFLOP/s, weights cast each time"


def _product_of(dtype):
    def product(p, x):
        return ms.ops.cast(layers.linear(x, p["w"], None, dtype), ms.float32)

    return product


def _attention(mesh, workdir):
    dtype, rng = _dtype(), np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((1, 4, 256, 64), dtype=np.float32) for _ in range(4))
    seen = (np.arange(256) < 200).astype(np.float32).reshape(1, 1, 1, -1)  # keys after them are masked
    scores = np.float64(q) @ np.float64(k).swapaxes(2, 3) / 8 - 1e9 * (1 - seen)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)

    def attend(p, q, k, v, seen):
        q, k, v = (layers.to_compute(x, dtype) for x in (q, k, v))
        return ms.ops.cast(layers.attention(q, k, v, seen), ms.float32)

    inputs = [ms.Tensor(x) for x in (q, k, v, seen)]
    _compare("attention", layerwise.run(attend, {}, *inputs).asnumpy(), p @ v, dtype)
    found = layerwise.pull(attend, {}, inputs, [ms.Tensor(dout)], wrt=3)[1]
    _compare("attention's gradient", found[2].asnumpy(), p.swapaxes(2, 3) @ dout, dtype)
    return f"{dtype}, with a mask, and its gradient"


def _collectives(mesh, workdir):
    world = mesh.world
    if world.size == 1:
        raise Skipped("there is one rank: start as many as there are cards, --workers=8")
    mine, count = np.float32([world.rank + 1]), world.size
    whole = np.arange(1, count + 1, dtype=np.float32)
    table = ms.Tensor(np.outer(whole, mine))  # (count, 1)
    found = {
        "AllReduce": (collectives.all_reduce(world)(ms.Tensor(mine)), whole.sum(keepdims=True)),
        "AllGather": (collectives.all_gather(world)(ms.Tensor(mine)), whole),
        "ReduceScatter": (collectives.reduce_scatter(world)(table), [[mine[0] * whole.sum()]]),
        "AlltoAll": (collectives.all_to_all(world, 0, 1)(table), [mine[0] * whole]),
    }
    for name, (value, expected) in found.items():
        if not np.array_equal(value.asnumpy(), expected):
            raise Failed(f"{name} of {count} ranks gives {value.asnumpy()}, expected {expected}")
    message, reduce = ms.Tensor(np.ones(MESSAGE, np.float32)), collectives.all_reduce(world)
    reduce(message).asnumpy()
    start = time.perf_counter()
    reduce(message).asnumpy()
    return f"{', '.join(found)} of {count} ranks; 64 MB are summed at {MESSAGE * 4e-9 / (time.perf_counter() - start):.3g} GB/s"


def _disk(mesh, workdir):
    data, path = os.urandom(DISK_BYTES), workdir / f"hello_{mesh.world.rank}"
    start = time.perf_counter()
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        rate = DISK_BYTES / (time.perf_counter() - start) / 1e9
        if path.read_bytes() != data:
            raise Failed(f"{path} does not read as it was written")
    finally:
        path.unlink(missing_ok=True)
    free = shutil.disk_usage(workdir).free / 1e9
    return f"{workdir}: {free:.0f} GB are free, 64 MB were written at {rate:.2g} GB/s"


def _shared(mesh, workdir):
    world = mesh.world
    if world.size == 1:
        raise Skipped("there is one rank")
    own = workdir / f"hello_from_{world.rank}"
    own.touch()
    sync.wait(world)
    missing = [rank for rank in range(world.size) if not (workdir / f"hello_from_{rank}").is_file()]
    sync.wait(world)
    own.unlink()
    if missing:
        raise Failed(f"{workdir} of rank {world.rank} lacks the files of ranks {', '.join(map(str, missing))}")
    return f"{workdir} is the same folder for {world.size} ranks"


def _cards() -> list[str]:
    found = runtime.cards()
    if not found:
        raise Skipped("no /dev/davinci*: no card is here, or it is not passed into this container")
    return found


def _version(path: Path) -> str:
    if not path.is_file():
        raise Failed(f"there is no {path}")
    lines = (line.strip().partition("=") for line in path.read_text(encoding="utf-8").splitlines())
    return next((value for key, _, value in lines if key in ("Version", "version")), "without a version")


def _dtype() -> str:
    return "bfloat16" if backend.device() == "Ascend" else "float32"


def _compare(what: str, found: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    apart = np.abs(found - expected).max() / np.abs(expected).max()
    if not apart <= (2e-2 if dtype == "bfloat16" else 1e-5):
        raise Failed(f"{what} in {dtype} is {apart:.2g} of the largest value off numpy's")


CHECKS: dict[str, tuple[Callable[[Mesh, Path], str], str]] = {
    "packages": (_packages, "pip install -c constraints.txt -e . in a fresh environment"),
    "driver": (_driver, "install the card's driver and firmware, or mount /usr/local/Ascend/driver into the container"),
    "CANN": (
        _cann,
        "install the CANN toolkit and its kernels in a version that MindSpore knows, with its Python packages te and hccl, and "
        "`source /usr/local/Ascend/ascend-toolkit/set_env.sh` before Python starts",
    ),
    "device": (_device, "look at `npu-smi info`; at ASCEND_RT_VISIBLE_DEVICES; and at what `import mindspore` prints"),
    "product": (_product, "send us hello_card.json"),
    "attention": (_attention, "send us hello_card.json; float32 does without the fused kernel"),
    "collectives": (
        _collectives,
        "look at HCCL_* in the environment and at `hccn_tool`; raise runtime.hccl_connect_timeout",
    ),
    "disk": (_disk, "free some space, or choose another --workdir"),
    "shared folder": (_shared, "give all machines one folder, at the same path, as --workdir"),
}
