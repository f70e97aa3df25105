"""What all writes share: pages are sent ahead once each, and a disk that takes no hint is none the worse for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from embedstore.disk import SendAhead

MB = 1 << 20


def test_pages_are_sent_ahead_once_each_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, at, count, how: asked.append((at, count)), raising=False)
    with (tmp_path / "a").open("wb") as handle:
        ahead = SendAhead(handle.fileno())
        for size in range(0, 41 * MB, 3 * MB):
            ahead.written(size)
    assert asked == [(at * MB, 9 * MB) for at in (0, 9, 18, 27)]


def test_a_disk_that_takes_no_hint_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", refuse, raising=False)
    with (tmp_path / "a").open("wb") as handle:
        SendAhead(handle.fileno()).written(9 * MB)
    monkeypatch.delattr(os, "posix_fadvise")
    with (tmp_path / "b").open("wb") as handle:
        SendAhead(handle.fileno()).written(9 * MB)
