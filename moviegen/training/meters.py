"""What is told of steps besides their loss, summed up from one logged step to the next: its parts, speed, memory."""

import resource
from collections.abc import Mapping
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import ops

from moviegen.models.costs import work
from moviegen.nn import backend, kernels
from moviegen.parallel.buckets import Bucket, tokens

TIME_BINS = 10  # of flow times from 0 to 1
# What depends on the machine and its clock, and so differs from run to run.
MEASURED = ("step_seconds", "samples_per_second", "tokens_per_second", "tflops_per_second", "utilisation")
MEASURED += ("data_wait", "data_wait_share", "memory_gb", "device_gb")
NO_BUCKETS = {"resolution": 0, "weights": (), "batch_sizes": ()}


class Load(NamedTuple):
    """What a step processes on all ranks: samples, tokens, and operations of the model, forward and back once (0: unknown)."""

    samples: int = 0
    tokens: int = 0
    flop: float = 0.0


def load(config: Any, bucket: Bucket) -> Load:
    """The load of the generator's steps of a bucket."""
    alone = config.copy_and_resolve_references().unlock()
    alone.data.update(num_frames=bucket.frames, height=bucket.height, width=bucket.width)
    alone.data.update(image_fraction=float(bucket.kind == "image"), tokens_per_batch=0, buckets=NO_BUCKETS)
    alone.train.batch_size, alone.optim.accumulate = bucket.batch_size, 1
    (found,) = work.training(alone, dict(data=1, zero=1, sp=1), once=True).values()
    return Load(bucket.batch_size, bucket.batch_size * tokens(bucket, config), found.flop)


def by_time(terms: ms.Tensor, t: np.ndarray, batches: int, ranks: int) -> dict[str, Any]:
    """The losses of samples by their flow time: {"time_sums", "time_counts"}, vectors whose means over ranks may be divided.

    terms (b,): what each sample on this rank, one of the `ranks` of its sequence, adds to the loss of `batches` such batches.
    """
    bins = np.minimum((np.asarray(t) * TIME_BINS).astype(int), TIME_BINS - 1)
    there = (np.arange(TIME_BINS)[:, None] == bins).astype(np.float32)
    sums = ops.reshape(ops.matmul(backend.tensor(there), ops.reshape(terms, (-1, 1))), (-1,))
    return {"time_sums": sums, "time_counts": there.sum(1) / (len(bins) * batches * ranks)}


def time_parts(numbers: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Sums and counts by name of what `by_time` found; nothing of bins that no sample was in."""
    pairs = zip(numbers["time_sums"], numbers["time_counts"], strict=True)
    return {f"loss/t{i / TIME_BINS:.1f}-{(i + 1) / TIME_BINS:.1f}": p for i, p in enumerate(pairs) if p[1] > 0}


class Meter:
    """Sums up the steps of a run on `ranks` ranks of `peak` TFLOP/s (0: unknown) until it is read."""

    def __init__(self, ranks: int, peak: float = 0.0):
        self._peak = ranks * peak * 1e12
        self._clear()

    def _clear(self) -> None:
        self._steps, self._seconds, self._waiting, self._load, self._parts = 0, 0.0, 0.0, np.zeros(3), {}

    def add(self, seconds: float, waited: float, done: Load, parts: Mapping[str, tuple[float, float]]) -> None:
        """Notes a step: what it took, waiting for its inputs included, what it did, (sum, count) of the losses of its parts."""
        self._steps, self._seconds, self._waiting = self._steps + 1, self._seconds + seconds, self._waiting + waited
        self._load = self._load + done
        for key, pair in parts.items():
            self._parts[key] = np.add(self._parts.get(key, 0.0), pair)

    def read(self) -> dict[str, float]:
        """The numbers of the steps since it was last read: mean losses of parts, and those of MEASURED that are known."""
        losses = {key: float(total / count) for key, (total, count) in sorted(self._parts.items())}
        samples, tokens, flop = self._load / self._seconds
        found = {
            "step_seconds": self._seconds / self._steps,
            "samples_per_second": samples,
            "tokens_per_second": tokens,
            "tflops_per_second": flop / 1e12,
            "utilisation": flop / self._peak if self._peak else 0.0,
            "data_wait": self._waiting / self._steps,
            "data_wait_share": self._waiting / self._seconds,
            "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
            "device_gb": kernels.form(int, ms.runtime.max_memory_allocated)() / 1e9,
        }
        self._clear()
        return losses | {key: float(x) for key, x in found.items() if x or key.startswith("data_wait")}


def words(measured: Mapping[str, float]) -> list[str]:
    """What of a meter's numbers is told in a line of progress."""
    told = [("samples_per_second", "samples/s"), ("tokens_per_second", "tokens/s"), ("tflops_per_second", "TFLOP/s")]
    found = [f"{short(measured[key])} {unit}" for key, unit in told if key in measured]
    if "utilisation" in measured:
        found[-1] += f" ({measured['utilisation']:.0%})"
    memory = measured.get("device_gb", measured["memory_gb"])
    return [*found, f"waits {measured['data_wait_share']:.0%}", f"{short(memory)} GB"]


def short(number: float) -> str:
    """Three digits: 0.0123, 1.23, 123, 12.3k, 1.23M."""
    for factor, letter in ((1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g}{letter}"
    return f"{number:.3g}"
