"""Calls a function in a child process: what MindSpore compiled and allocated goes away with the child."""

import importlib
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

from moviegen import errors

_ROOT = str(Path(__file__).resolve().parents[2])


def call(function: str, *args: Any) -> tuple[Any, float]:
    """Result of `package.module:name` called with `args` in a child, and the child's peak memory in GB.

    Arguments cross by pickle, the result by JSON; what the child prints is shown as it comes. The child ends with its
    parent, however that ends. A ConfigError or DataError in the child is raised here as itself; after anything else its
    traceback has been printed and RuntimeError is raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        path = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
        child = subprocess.Popen(
            [sys.executable, "-c", "from moviegen.demo import isolate; isolate._serve()", str(answer)],
            stdin=subprocess.PIPE,
            env=dict(os.environ, PYTHONPATH=path),
        )
        try:
            # The pipe stays open: the child sees it close when this process is gone, even by SIGKILL.
            child.stdin.write(pickle.dumps((function, args)))
            child.stdin.flush()
            code = child.wait()
        except BrokenPipeError:
            code = child.wait()
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
            _close(child.stdin)
        if not answer.is_file():
            reason = f"was ended by signal {-code}{' (out of memory?)' if code == -9 else ''}" if code < 0 else "failed"
            raise RuntimeError(f"{function} {reason}; started again, it continues from its last checkpoint")
        told = json.loads(answer.read_text())
    if "error" in told:
        raise getattr(errors, told["error"])(told["message"])
    return told["result"], told["peak_memory_gb"]


def own_peak_memory_gb() -> float:
    """Largest resident memory of this process so far, in GB (10^9 bytes)."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent had before this program was started in its place
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _close(pipe: Any) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        pass


def _serve() -> None:
    function, args = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module, _, name = function.partition(":")
    try:
        result = getattr(importlib.import_module(module), name)(*args)
        told = {"result": result, "peak_memory_gb": own_peak_memory_gb()}
    except errors.ConfigError as error:
        told = {"error": type(error).__name__, "message": str(error)}
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    Path(sys.argv[1]).write_text(json.dumps(told))


def _end_with_parent() -> None:
    while os.read(0, 1024):  # not sys.stdin: its lock, held by this thread, would stop the interpreter from ending
        pass
    os._exit(1)
