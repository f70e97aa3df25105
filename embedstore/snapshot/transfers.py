"""`transfer_all`: many transfers with one place at a time, which all end where one fails or the user interrupts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

from embedstore.snapshot.remotes.remote import Remote

__all__ = ["transfer_all"]

_AGAIN_S = 0.05

Given = TypeVar("Given")
Result = TypeVar("Result")


def transfer_all(
    act: Callable[[Given, Event], Result], given: Iterable[Given], *, remote: Remote, n_parallel: int
) -> list[Result]:
    """Return ``act`` of each, in their order, run in threads of their own.

    Parameters
    ----------
    act : callable
        One transfer with ``remote``. Its second argument is set where it should not begin, or try again.
    given : iterable
        What to transfer.
    remote : Remote
        Told to cut off what is under way once one has failed, or this thread was interrupted: whoever waits for a
        silent server must not keep the others, or the user, waiting.
    n_parallel : int
        Transfers at a time; at least one.

    Raises
    ------
    Exception
        What the first that failed has raised.

    Examples
    --------
    >>> from embedstore.snapshot.remotes import open_remote
    >>> transfer_all(lambda name, stop: len(name), ["a", "bcd"], remote=open_remote("."), n_parallel=2)
    [1, 3]
    """
    stop = Event()
    running: list[Future[Result]] = []
    with ThreadPoolExecutor(max_workers=max(1, n_parallel)) as pool:
        try:
            # Within, since an interrupt between two submissions must stop those that run already.
            for one in given:
                running.append(pool.submit(act, one, stop))
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in running):
                remote.abort()  # more than once: one that was about to ask has its connection only now
                time.sleep(_AGAIN_S)
            raise
    return [future.result() for future in running]
