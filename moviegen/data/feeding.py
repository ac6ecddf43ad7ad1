"""Inputs made by threads ahead of the steps that take them, in the steps' order: how many threads changes no result."""

import collections
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def of(data: Any) -> tuple[int, int]:
    """`workers` and `prefetch` of the section `data`: threads, and steps that they are ahead; (1, 0) where it has neither."""
    return data.get("workers", 1), data.get("prefetch", 0)


class Feed:
    """What `make` gives for each step, as a list; made by `workers` threads up to `prefetch` steps ahead, 0: when it is taken.

    Threads do: decoders, files and numpy let go of the interpreter's lock, as graphs do while they run.

    Args:
        make: step -> inputs; a pure function, as several steps are made at once.
        end: the first step that is not made.
    """

    def __init__(self, make: Callable[[int], Iterable[T]], end: int, workers: int, prefetch: int):
        self.waited = 0.0  # seconds in which whoever takes inputs waited for them, in all
        self._make, self._end, self._prefetch = make, end, prefetch
        self._pool = ThreadPoolExecutor(workers, "inputs")  # starts no thread before there is work
        self._made: dict[int, Future] = {}

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: Any) -> None:
        self._pool.shutdown(cancel_futures=True)

    def take(self, step: int) -> list[T]:
        """The inputs of a step, once; raises here what was raised when they were made."""
        begun = time.monotonic()
        try:
            if not self._prefetch:
                return list(self._make(step))
            for each in range(step, min(step + self._prefetch + 1, self._end)):
                if each not in self._made:
                    self._made[each] = self._pool.submit(lambda each=each: list(self._make(each)))
            return self._made.pop(step).result()
        finally:
            self.waited += time.monotonic() - begun

    def fails(self, step: int) -> bool:
        """Whether `take` will raise, known as soon as the inputs are made; False of a step that is not made ahead."""
        begun, made = time.monotonic(), self._made.get(step)
        failed = made is not None and made.exception() is not None
        self.waited += time.monotonic() - begun
        return failed


def ahead(items: Iterable[T], prefetch: int) -> Iterator[T]:
    """The items, made by one thread up to `prefetch` ahead of whoever takes them."""
    if not prefetch:
        yield from items
        return
    source, end = iter(items), object()
    with ThreadPoolExecutor(1, "inputs") as pool:
        made = collections.deque(pool.submit(next, source, end) for _ in range(prefetch))
        while (item := made.popleft().result()) is not end:
            made.append(pool.submit(next, source, end))
            yield item
