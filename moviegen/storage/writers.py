"""What a run says as it goes: numbers in metrics.jsonl and TensorBoard, progress lines on the terminal."""

import contextlib
import functools
import io
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moviegen.storage import files

FILE = "metrics.jsonl"
GIF_FPS = 16
SECONDS_BETWEEN_LINES = 5.0


def _on_first_rank(method: Callable) -> Callable:
    """Skips a method of `Writer` on ranks other than 0; the caller's own writer gets the same call."""

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        if self._file is not None:
            try:
                with files.naming(self._file.name):
                    method(self, *args, **kwargs)
            except OSError:
                self._events._closed = True  # or it would try once more when Python ends, and print a traceback
                raise
            if self._also is not None:
                getattr(self._also, method.__name__)(*args, **kwargs)

    return call


class Writer:
    """Writes the numbers of one stage of a run into `workdir`; ranks other than 0 write nothing.

    Its methods and their arguments are those of `clu.metric_writers.MetricWriter`.

    Args:
        name: stage, for example "tae"; several stages share one metrics.jsonl, each line tells its own.
        resume_step: the step that the run goes on from: lines of this stage with later steps are dropped. None keeps all.
        also: another writer with these methods. It gets all that this one gets and is flushed with it, but not closed.
    """

    def __init__(
        self, workdir: str | Path, name: str = "", resume_step: int | None = None, rank: int = 0, also: Any = None
    ):
        self._name, self._first_step, self._also, self._file = name, resume_step or 0, also, None
        if rank == 0:
            from tensorboardX import SummaryWriter

            path = Path(workdir) / FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            _heal(path, name, resume_step)
            self._file = open(path, "a", encoding="utf-8", buffering=1)
            purge = None if resume_step is None else resume_step + 1
            self._board = SummaryWriter(str(path.parent / "tensorboard" / name), purge_step=purge)
            # Written by this thread: theirs dies on a full disk, and the run would wait for it for ever.
            self._events = self._board.file_writer.event_writer
            self._events.add_event = self._events._ev_writer.write_event

    @_on_first_rank
    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends one line {"stage", "step", "time", **scalars}; JSON has no NaN or infinity, so they become null."""
        line = {"stage": self._name, "step": int(step), "time": round(time.time(), 3)}
        for key, value in scalars.items():
            line[key] = float(value) if math.isfinite(value) else None
            self._board.add_scalar(key, float(value), step)
        self._file.write(json.dumps(line) + "\n")
        self._board.flush()

    @_on_first_rank
    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Sends uint8 images, (h w c) or (n h w c), to TensorBoard."""
        for key, image in images.items():
            self._board.add_image(key, image, step, dataformats="NHWC"[-image.ndim :])

    @_on_first_rank
    def write_videos(self, step: int, videos: Mapping[str, np.ndarray]) -> None:
        """Sends uint8 videos, (t h w c) or (n t h w c) side by side, to TensorBoard as GIFs of 16 frames a second."""
        for key, video in videos.items():
            self._add_gif(key, video if video.ndim == 4 else np.concatenate(list(video), axis=2), step)

    @_on_first_rank
    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Sends texts (Markdown) to TensorBoard."""
        for key, text in texts.items():
            self._board.add_text(key, text, step)

    @_on_first_rank
    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Sends settings, {dotted key: value}, to TensorBoard as a text."""
        lines = "".join(f"    {key} = {value!r}\n" for key, value in hparams.items())  # indented is code in Markdown
        self._board.add_text("config", lines, self._first_step)

    @_on_first_rank
    def flush(self) -> None:
        """Writes out what is still buffered."""
        self._file.flush()
        self._board.flush()

    def close(self) -> None:
        """Flushes everything and closes the files."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._board.close()

    def _add_gif(self, key: str, frames: np.ndarray, step: int) -> None:
        # By hand, as tensorboardX's add_video wants the package moviepy; TensorBoard itself shows GIFs as they are.
        from PIL import Image
        from tensorboardX.proto.summary_pb2 import Summary

        content, (first, *rest) = io.BytesIO(), [Image.fromarray(frame) for frame in frames]
        first.save(content, "GIF", save_all=True, append_images=rest, duration=1000 // GIF_FPS, loop=0)
        image = Summary.Image(height=first.height, width=first.width, encoded_image_string=content.getvalue())
        summary = Summary(value=[Summary.Value(tag=key, image=image)])
        self._board.file_writer.add_summary(summary, step)


def read_metrics(workdir: str | Path, name: str | None = None) -> list[dict]:
    """Returns the lines of metrics.jsonl in order, of one stage or of all; none when there is no file yet."""
    path = Path(workdir) / FILE
    if not path.exists():
        return []
    return [line for line in _lines(path)[0] if name is None or line["stage"] == name]


def _lines(path: Path) -> tuple[list[dict], int]:
    """Returns what the lines of a metrics file hold, and how many are damaged, as by a power cut."""
    *whole, torn = path.read_text(encoding="utf-8", errors="replace").split("\n")  # `torn` is not written yet
    found: list[dict] = []
    for line in whole:
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict) and isinstance(value.get("stage"), str) and isinstance(value.get("step"), int):
                found.append(value)
    return found, len(whole) - len(found)


def _heal(path: Path, name: str, resume_step: int | None) -> None:
    """Drops damaged lines, and this stage's lines after resume_step, replacing the file in one rename."""
    if not path.exists():
        return
    lines, damaged = _lines(path)
    if damaged:
        print(f"{path}: {damaged} damaged lines dropped", flush=True)
    kept = "".join(
        json.dumps(line) + "\n"
        for line in lines
        if resume_step is None or line["stage"] != name or line["step"] <= resume_step
    )
    if kept.encode() != path.read_bytes():  # else, most often, another stage may have the file open
        files.write_text(kept, path)


class Progress:
    """Prints "label done/total, numbers, words, rate, time left" on rank 0, at most every five seconds and at the end."""

    def __init__(self, label: str, total: int, rank: int = 0):
        self.label, self.total, self._silent = label, total, rank != 0
        self._begun, self._first, self._printed = 0.0, None, -math.inf

    def update(self, done: int, *words: str, **numbers: float) -> None:
        """Notes that `done` of `total` are done; `numbers` and `words` are shown beside it."""
        if self._silent:
            return
        now = time.monotonic()
        if self._first is None:
            # The first call starts the clock: it comes after the first step, whose compilation tells nothing of the rest.
            self._begun, self._first = now, done
        if done < self.total and now - self._printed < SECONDS_BETWEEN_LINES:
            return
        self._printed = now
        parts = [f"{self.label} {done}/{self.total}"]
        parts += [f"{k} {value}" if isinstance(value, int) else f"{k} {value:.4g}" for k, value in numbers.items()]
        parts += words
        spent = now - self._begun
        if done > self._first and spent > 0:
            rate = (done - self._first) / spent
            parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each")
            left = (self.total - done) / rate
            parts.append(f"{_clock(left)} left" if done < self.total else f"took {_clock(spent)}")
        print("  ".join(parts), flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
