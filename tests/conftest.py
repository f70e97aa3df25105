"""Fixtures that several folders share: a separate encoder package, and small folders of clips."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))
os.environ["PYTHONPATH"] = os.pathsep.join([str(PLUGIN), *filter(None, [os.environ.get("PYTHONPATH")])])
# Before torch is imported: waiting threads must not spin while two test processes share two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Started in the background of a script, this process and its children would ignore the Ctrl-C that tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes is the machine's matter, not a test's.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def _no_store_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBEDSTORE", raising=False)


@pytest.fixture
def clip_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return `clip_files.write_clip_folder` for the test's own folder."""
    from clip_files import write_clip_folder

    return partial(write_clip_folder, tmp_path)
