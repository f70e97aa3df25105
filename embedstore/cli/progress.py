"""A progress bar on stderr; silent where stderr is no terminal."""

from __future__ import annotations

import sys
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

__all__ = ["Bar"]


class Bar:
    """A tqdm bar: what is done, rate, remaining time. Use as a context manager.

    Parameters
    ----------
    unit : str
        What is counted, in the singular.
    is_scaled : bool
        Whether thousands and millions are shown as k and M.
    """

    def __init__(self, *, unit: str, is_scaled: bool = True) -> None:
        self._unit, self._is_scaled = unit, is_scaled
        self._bar: Any = None
        self._n_failed = 0

    def begin(self, label: str, total: int) -> None:
        """Start a new bar, in place of the one before."""
        from tqdm import tqdm

        self._close()
        self._bar = tqdm(
            total=total,
            desc=label,
            unit=self._unit,
            unit_scale=self._is_scaled,
            file=sys.stderr,
            disable=not sys.stderr.isatty(),
        )

    def add(self, count: int, *, n_failed: int = 0) -> None:
        """Count so many more, some of which failed."""
        if self._bar is None:
            return
        if n_failed:
            self._n_failed += n_failed
            self._bar.set_postfix(failed=self._n_failed)
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
        with suppress(OSError):  # a terminal that went away takes nothing from what was done
            self._close()
