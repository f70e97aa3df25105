"""Nothing here is about power cuts: files are written without waiting for the disk.

Snapshots are inspected in this process, which is quicker, but for tests that ask for `in_a_child`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer, fault_server
from sent_snapshots import two_encoders

from embedstore.snapshot.inspection import answer
from embedstore.snapshot.quarantine import Quarantine


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def in_a_child() -> None:
    """The test inspects in a child process with limits, as the program does."""


@pytest.fixture(autouse=True)
def _inspect_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "in_a_child" in request.fixturenames:
        return

    def ask(asked: Mapping[str, object]) -> dict[str, Any]:
        return answer(asked, is_child=False)

    monkeypatch.setattr(Quarantine, "_ask", staticmethod(ask))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sent snapshot of two encoders."""
    return two_encoders(tmp_path_factory.mktemp("exported"))


@pytest.fixture
def served(exported: Path) -> Iterator[FaultServer]:
    """A web server of `exported`, which fails where it is told to."""
    with fault_server(exported) as server:
        yield server
