"""Damaged copies of what a file holds, and a bound on the memory that reading one may take."""

import contextlib
import resource
from pathlib import Path

VALUES = (None, True, -1, 0, 3, 1 << 44, 10**30, 1.5, float("nan"), "text", "../x", [], [[]], [1 << 40], {}, {"a": 1})


def flipped(content: bytes, rng, first: int | None = None) -> bytes:
    """Some bits of the first bytes the other way round, and now and then cut short."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(first or len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.1 else changed)


def replaced(value, rng):
    """A JSON value in which another one stands somewhere, or a key is gone."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(VALUES)
    if isinstance(value, list):
        at = rng.randrange(len(value))
        return [*value[:at], replaced(value[at], rng), *value[at + 1 :]]
    at = rng.choice(sorted(value))
    rest = {key: item for key, item in value.items() if key != at}
    return rest if rng.random() < 0.1 else rest | {at: replaced(value[at], rng)}


@contextlib.contextmanager
def little_memory(more: int = 1 << 30):
    """The process may ask for so many bytes more than it has: MemoryError beyond."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
