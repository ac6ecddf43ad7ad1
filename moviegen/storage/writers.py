"""Where the numbers of a run go: metrics.jsonl, TensorBoard events and one progress line on the terminal."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

FILE = "metrics.jsonl"
SECONDS_BETWEEN_LINES = 5.0


class Writer:
    """Writes the numbers of one stage of a run into `workdir`; ranks other than 0 write and print nothing.

    Args:
        name: stage, for example "tae"; several stages share one metrics.jsonl, each line tells its own.
        resume_step: the step that the run goes on from: lines of this stage with later steps are dropped, since they
            will be written again. None keeps all lines. A line torn by a kill is dropped in either case.
    """

    def __init__(self, workdir: str | Path, name: str = "", resume_step: int | None = None, rank: int = 0):
        self.workdir, self.name, self.silent = Path(workdir), name, rank != 0
        self._resume_step, self._board, self._file = resume_step, None, None
        self._marks: dict[str, tuple[float, int, float]] = {}  # label -> time and count at its first line, last printed
        if not self.silent:
            self.workdir.mkdir(parents=True, exist_ok=True)
            _heal(self.workdir / FILE, name, resume_step)
            self._file = open(self.workdir / FILE, "a", encoding="utf-8", buffering=1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line {"stage", "step", "time", **values}; JSON has no NaN or infinity, so they become null."""
        if self.silent:
            return
        numbers = {key: float(value) for key, value in values.items()}
        line = {"stage": self.name, "step": int(step), "time": round(time.time(), 3)}
        line |= {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        self._file.write(json.dumps(line) + "\n")
        for key, value in numbers.items():
            self._tensorboard().add_scalar(key, value, step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Sends uint8 (h w c) images to TensorBoard."""
        for key, image in images.items() if not self.silent else ():
            self._tensorboard().add_image(key, image, step, dataformats="HWC")

    def text(self, step: int, texts: Mapping[str, str]) -> None:
        """Sends texts (Markdown) to TensorBoard."""
        for key, text in texts.items() if not self.silent else ():
            self._tensorboard().add_text(key, text, step)

    def progress(self, label: str, done: int, total: int, **numbers: float) -> None:
        """Prints "label done/total, numbers, rate, time left", at most every five seconds, and always the last line."""
        if self.silent:
            return
        now = time.monotonic()
        begun, first, printed = self._marks.get(label, (now, done, -math.inf))
        if done < total and now - printed < SECONDS_BETWEEN_LINES:
            self._marks[label] = (begun, first, printed)
            return
        self._marks[label] = (begun, first, now)
        parts = [f"{label} {done}/{total}"] + [f"{key} {_short(value)}" for key, value in numbers.items()]
        # The first call starts the clock: it comes after the first step, whose compilation tells nothing of the rest.
        if done > first and now > begun:
            rate = (done - first) / (now - begun)
            parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each")
            parts.append(f"{_clock((total - done) / rate)} left" if done < total else f"took {_clock(now - begun)}")
        print("  ".join(parts), flush=True)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def _tensorboard(self):
        if self._board is None:
            from tensorboardX import SummaryWriter

            purge = None if self._resume_step is None else self._resume_step + 1
            self._board = SummaryWriter(str(self.workdir / "tensorboard" / self.name), purge_step=purge)
        return self._board


def read_metrics(workdir: str | Path, name: str | None = None) -> list[dict]:
    """Returns the lines of metrics.jsonl in order, of one stage or of all; none when there is no file yet."""
    path = Path(workdir) / FILE
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline is not written yet
    lines = [json.loads(line) for line in whole]
    return [line for line in lines if name is None or line["stage"] == name]


def _heal(path: Path, name: str, resume_step: int | None) -> None:
    """Drops a torn last line, and this stage's lines after resume_step, replacing the file in one rename."""
    if not path.exists():
        return
    kept = [
        json.dumps(line) + "\n"
        for line in read_metrics(path.parent)
        if resume_step is None or line["stage"] != name or line["step"] <= resume_step
    ]
    if "".join(kept) == path.read_text(encoding="utf-8"):
        return  # most often; another stage may have the file open
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
