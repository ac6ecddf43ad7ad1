"""The writer of a run's numbers: metrics.jsonl, TensorBoard events and, beside them, a writer of the caller's own."""

import io
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moviegen.storage import files

FILE = "metrics.jsonl"
GIF_FPS = 16


class Writer:
    """Writes the numbers of one stage of a run into `workdir`; ranks other than 0 write nothing.

    Its methods and their arguments are those of `clu.metric_writers.MetricWriter`.

    Args:
        name: stage, for example "tae"; several stages share one metrics.jsonl, each line tells its own.
        resume_step: the step that the run goes on from: lines of this stage with later steps are dropped, since they
            will be written again. None keeps all lines. A line torn by a kill is dropped in either case.
        also: another writer with these methods, such as one of clu's. It gets all that this one gets and is flushed
            with it, but not closed.
    """

    def __init__(
        self, workdir: str | Path, name: str = "", resume_step: int | None = None, rank: int = 0, also: Any = None
    ):
        self.workdir, self.name, self.silent = Path(workdir), name, rank != 0
        self._others = [] if also is None else [also]
        self._resume_step, self._board, self._file = resume_step, None, None
        if not self.silent:
            self.workdir.mkdir(parents=True, exist_ok=True)
            _heal(self.workdir / FILE, name, resume_step)
            self._file = open(self.workdir / FILE, "a", encoding="utf-8", buffering=1)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends one line {"stage", "step", "time", **scalars}; JSON has no NaN or infinity, so they become null."""
        if self.silent:
            return
        numbers = {key: float(value) for key, value in scalars.items()}
        line = {"stage": self.name, "step": int(step), "time": round(time.time(), 3)}
        line |= {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        self._file.write(json.dumps(line) + "\n")
        for key, value in numbers.items():
            self._tensorboard().add_scalar(key, value, step)
        for writer in self._others:
            writer.write_scalars(step, numbers)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Sends uint8 images, (h w c) or (n h w c), to TensorBoard."""
        if self.silent:
            return
        for key, image in images.items():
            if image.ndim == 4:
                self._tensorboard().add_images(key, image, step, dataformats="NHWC")
            else:
                self._tensorboard().add_image(key, image, step, dataformats="HWC")
        for writer in self._others:
            writer.write_images(step, images)

    def write_videos(self, step: int, videos: Mapping[str, np.ndarray]) -> None:
        """Sends uint8 videos, (t h w c) or (n t h w c) side by side, to TensorBoard as GIFs of 16 frames a second."""
        if self.silent:
            return
        for key, video in videos.items():
            self._add_gif(key, video if video.ndim == 4 else np.concatenate(list(video), axis=2), step)
        for writer in self._others:
            writer.write_videos(step, videos)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Sends texts (Markdown) to TensorBoard."""
        if self.silent:
            return
        for key, text in texts.items():
            self._tensorboard().add_text(key, text, step)
        for writer in self._others:
            writer.write_texts(step, texts)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Sends settings, {dotted key: value}, to TensorBoard as a text."""
        if self.silent:
            return
        lines = "".join(f"    {key} = {value!r}\n" for key, value in hparams.items())  # indented is code in Markdown
        self._tensorboard().add_text("config", lines, self._resume_step or 0)
        for writer in self._others:
            writer.write_hparams(hparams)

    def flush(self) -> None:
        """Writes out what is still buffered."""
        for writer in [self._file, self._board, *self._others]:
            if writer is not None and not self.silent:
                writer.flush()

    def close(self) -> None:
        """Flushes everything and closes the files."""
        self.flush()
        for writer in [self._file, self._board]:
            if writer is not None:
                writer.close()

    def _tensorboard(self) -> Any:
        if self._board is None:
            from tensorboardX import SummaryWriter

            purge = None if self._resume_step is None else self._resume_step + 1
            self._board = SummaryWriter(str(self.workdir / "tensorboard" / self.name), purge_step=purge)
        return self._board

    def _add_gif(self, key: str, frames: np.ndarray, step: int) -> None:
        # By hand, as tensorboardX's add_video wants the package moviepy; TensorBoard itself shows GIFs as they are.
        from PIL import Image
        from tensorboardX.proto.summary_pb2 import Summary

        content, (first, *rest) = io.BytesIO(), [Image.fromarray(frame) for frame in frames]
        first.save(content, "GIF", save_all=True, append_images=rest, duration=1000 // GIF_FPS, loop=0)
        image = Summary.Image(height=first.height, width=first.width, encoded_image_string=content.getvalue())
        summary = Summary(value=[Summary.Value(tag=key, image=image)])
        self._tensorboard().file_writer.add_summary(summary, step)


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
    kept = "".join(
        json.dumps(line) + "\n"
        for line in read_metrics(path.parent)
        if resume_step is None or line["stage"] != name or line["step"] <= resume_step
    )
    if kept != path.read_text(encoding="utf-8"):  # else, most often, another stage may have the file open
        files.write_text(kept, path)
