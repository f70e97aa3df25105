"""How many threads a piece of work is given."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["one_blas_thread"]


@cache
def _controller(with_scipy: bool) -> Any:
    """Read the list of loaded libraries (3 ms) once, and again when scipy has brought a BLAS of its own."""
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped,unused-ignore]

    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Run on one BLAS thread: on several, products of narrow or small matrices mostly wait for each other.

    Measured for a path of logistic regressions on 240 x 1280 with 4 classes beside another busy process: 0.08 s on
    one thread, 0.6 to 2.3 s on two.
    """
    with _controller("scipy.optimize" in sys.modules).limit(limits=1, user_api="blas"):
        yield
