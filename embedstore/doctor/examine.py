"""All checks, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from embedstore.doctor.decoders import check_decoders
from embedstore.doctor.finding import Finding
from embedstore.doctor.models import check_encoders
from embedstore.doctor.packages import check_packages, check_python, check_torch, probe_torch
from embedstore.doctor.places import check_hub, check_store

__all__ = ["examine"]


def examine(store: Path) -> Iterator[Finding]:
    """Yield a finding for each thing that a build needs.

    Parameters
    ----------
    store : Path
        Folder of the store, which need not be there.
    """
    yield check_python()
    yield from check_packages()
    torch = probe_torch()
    yield from check_torch(torch)
    yield from check_decoders()
    yield from check_encoders(torch)
    yield check_hub()
    yield from check_store(store)
