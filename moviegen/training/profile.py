"""MindSpore's own profile of the steps that `train.profile_steps` names."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mindspore import profiler

from moviegen.nn import kernels

FOLDER = "profile"


@contextlib.contextmanager
def steps(config: Any, workdir: Path, rank: int) -> Iterator[Callable[[int], None]]:
    """Yields begin(step), to be called before each; steps (first, count) are written to `workdir/profile`, by each rank."""
    first, count = config.train.get("profile_steps", ()) or (0, 0)
    running: list[Any] = []

    def end() -> None:
        while running:
            running.pop().stop()
            if rank == 0:
                print(f"the profile of steps {first} to {first + count - 1} is in {workdir / FOLDER}", flush=True)

    def begin(step: int) -> None:
        if step == first and count:
            running.append(_started(workdir / FOLDER))
        elif step == first + count:
            end()

    try:
        yield begin
    finally:
        end()


def _started(folder: Path) -> Any:
    activities = [profiler.ProfilerActivity.CPU, *kernels.form([], [profiler.ProfilerActivity.NPU])]
    made = profiler.profile(
        activities=activities,
        start_profile=False,
        on_trace_ready=profiler.tensorboard_trace_handler(str(folder)),
    )
    made.start()
    return made
