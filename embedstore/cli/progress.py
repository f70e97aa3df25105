"""A progress bar on stderr; silent where stderr is no terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self

__all__ = ["Bar"]


class Bar:
    """A tqdm bar: what is done, rate, remaining time. Use as a context manager.

    Parameters
    ----------
    unit : str
        What is counted, in the singular.
    """

    def __init__(self, *, unit: str) -> None:
        self._unit = unit
        self._bar: Any = None

    def begin(self, label: str, total: int) -> None:
        """Start a new bar, in place of the one before."""
        from tqdm import tqdm

        self._close()
        hidden = not sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=label, unit=self._unit, unit_scale=True, file=sys.stderr, disable=hidden)

    def add(self, count: int) -> None:
        """Count so many more."""
        if self._bar is not None:
            self._bar.update(count)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
