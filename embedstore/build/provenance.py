"""How, when and on what kind of machine a set was made. Lies beside the description, outside the set's id.

Each finished unit's receipt says which worker made it, so that whoever commits, on whatever host, can tell.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from embedstore.build.plan import BuildPlan
from embedstore.build.units import Receipt
from embedstore.encoder import Encoder, get_card
from embedstore.errors import UnknownNameError
from embedstore.identity import canonical_json

__all__ = ["package_versions", "provenance_of", "worker_facts"]

_VERSIONED = ("embedstore", "numpy", "pyarrow", "torch", "torchvision", "av", "opencv-python-headless", "pydicom")


@cache
def package_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def worker_facts(encoder: Encoder | None) -> dict[str, Any]:
    """Return package versions, device and class of host of this process; nothing that names the host.

    Parameters
    ----------
    encoder : Encoder or None
        None where nothing was encoded, so that no device was used.
    """
    return {
        "versions": dict(package_versions(_VERSIONED)),
        "device": None if encoder is None else getattr(encoder, "device", "cpu"),
        "host_class": f"{platform.system()}-{platform.machine()}-{os.cpu_count()}",
    }


def _licence(encoder: str) -> dict[str, Any]:
    try:
        card = get_card(encoder)
    except UnknownNameError:  # made where another package brought the encoder
        return {}
    return {"licence": card.licence, "licence_forbids": card.licence_forbids}


def provenance_of(
    plan: BuildPlan, receipts: Collection[Receipt], *, wall_seconds: float | None = None
) -> dict[str, Any]:
    """Return the provenance of the set that a build commits.

    Parameters
    ----------
    wall_seconds : float or None
        Of the run that commits; None where it only commits what others made.

    Returns
    -------
    dict
        JSON values. ``workers`` is there where workers of several kinds made the units; the facts at the top are then
        those of the first kind in the order of their text.
    """
    kinds = {canonical_json(receipt.made): dict(receipt.made) for receipt in receipts if receipt.made}
    workers = [kinds[text] for text in sorted(kinds)]
    found = {
        **(workers[0] if workers else worker_facts(None)),
        **_licence(plan.spec.name),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "batch_size": plan.batch_size,
        "parent": plan.parent,
        "decode_seconds": round(sum(receipt.decode_seconds for receipt in receipts), 3),
        "encode_seconds": round(sum(receipt.encode_seconds for receipt in receipts), 3),
        "clips_encoded": sum(receipt.rows["clips"] for receipt in receipts),
    }
    if wall_seconds is not None:
        found["wall_seconds"] = round(wall_seconds, 3)
    return {**found, "workers": workers} if len(workers) > 1 else found
