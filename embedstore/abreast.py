"""`map_abreast`: the same done to several things at once, in threads that end with the loop over their results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["map_abreast"]

# More than a few readers do not make a disk faster, and some slower.
_MAX_THREADS = 4

Given = TypeVar("Given")
Result = TypeVar("Result")


def map_abreast(
    act: Callable[[Given], Result], given: Iterable[Given], *, n_threads: int | None = None
) -> Iterator[Result]:
    """Yield ``act`` of each, in their order; for work that frees the interpreter, such as hashing files.

    The first error is raised in its turn, and what has not begun by then is not begun.

    Parameters
    ----------
    n_threads : int, optional
        As many as there are cores, at most four, without.

    Examples
    --------
    >>> list(map_abreast(len, ["a", "bcd", ""]))
    [1, 3, 0]
    """
    if n_threads is None:
        n_threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    with ThreadPoolExecutor(n_threads, thread_name_prefix="abreast") as pool:
        try:
            yield from pool.map(act, given)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
