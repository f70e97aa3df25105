"""The hub, which may not be reached, and the store, which must be writable."""

from __future__ import annotations

import os
import shutil
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from embedstore.doctor.finding import Finding, gib
from embedstore.errors import EmbedstoreError
from embedstore.files import create_file, remove_file
from embedstore.locks import host_lock
from embedstore.store import Store
from embedstore.weights_cache import is_offline

__all__ = ["check_hub", "check_store"]

_HUB = "https://huggingface.co"
_TIMEOUT_S = 5.0
_LITTLE_BYTES = 5 << 30  # free disk below which a build of large models and sets may not end


def check_hub(timeout_s: float = _TIMEOUT_S) -> Finding:
    """Ask the hub for an answer, and wait no longer than ``timeout_s``, whatever hangs."""
    if is_offline():
        return _hub("note", "HF_HUB_OFFLINE is set: nothing is fetched; unset it to fetch weights")
    address = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
    if urlsplit(address).scheme not in ("http", "https"):
        return _hub("problem", f"HF_ENDPOINT is {address!r}, which is no web address; unset it")
    answered: list[str] = []

    def ask() -> None:
        request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "embedstore"})
        try:
            with urllib.request.urlopen(request, timeout=timeout_s):
                answered.append("")
        except urllib.error.HTTPError as error:
            error.close()
            answered.append("")  # it answers, and that is all that was asked
        except (OSError, ValueError) as error:
            answered.append(str(getattr(error, "reason", error)) or type(error).__name__)

    began = time.monotonic()
    asking = threading.Thread(target=ask, name="ask-hub", daemon=True)  # a look-up of a name knows no time limit
    asking.start()
    asking.join(timeout_s)
    if not answered or answered[0]:
        why = answered[0] if answered else f"no answer in {timeout_s:g} s"
        return _hub(
            "note",
            f"{address} is not reached ({why}): weights that are not here must come with --weights "
            "NAME=FILE_OR_FOLDER; set HF_HUB_OFFLINE=1 so that nothing tries",
        )
    return _hub("ok", f"{address} answers within {time.monotonic() - began:.1f} s")


def _hub(status: str, message: str) -> Finding:
    return Finding(area="hub", name="hub", status=status, message=message)


def check_store(path: Path) -> Iterator[Finding]:
    """See whether the store can be written to, or made, and how much room its disk has."""
    folder = path
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        if path.exists():
            Store.open(path)
        _try_writing(path if path.exists() else folder)
    except EmbedstoreError as error:
        yield Finding(area="store", name="store", status="problem", message=f"{error}; choose another with --store")
        return
    if path.exists():
        yield Finding(area="store", name="store", status="ok", message=f"{path} is a store and can be written")
    else:
        yield Finding(
            area="store", name="store", status="note", message=f"no store at {path} yet; embedstore build makes it"
        )
    free = shutil.disk_usage(folder).free
    few = free < _LITTLE_BYTES
    yield Finding(
        area="store",
        name="disk",
        status="note" if few else "ok",
        message=f"{gib(free)} free{'; make room before a large build' if few else ''}",
        facts={"free": free},
    )


def _try_writing(folder: Path) -> None:
    """Write, link, lock and remove a file as a build does."""
    trial = folder / f".doctor-{uuid.uuid4().hex}"
    lock = trial.with_name(f"{trial.name}.lock")
    try:
        create_file(trial, b"may be removed")
        with host_lock(lock, shared=False, wait_s=0.0, busy=f"{lock} is locked"):
            pass
    finally:
        for left in (trial, lock):
            if left.exists():
                remove_file(left)
