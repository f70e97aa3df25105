"""One line of the doctor's report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Finding", "gib"]

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes
    ----------
    area : str
        ``python``, ``packages``, ``device``, ``decoders``, ``encoders``, ``hub`` or ``store``.
    name : str
        What was looked at.
    status : {"ok", "note", "problem"}
        A note is worth knowing and keeps nothing from working; a problem does.
    message : str
        What was found and, unless all is well, what to do.
    facts : mapping
        Numbers and names behind the message.
    """

    area: str
    name: str
    status: str
    message: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the finding for JSON."""
        return {
            "area": self.area,
            "name": self.name,
            "status": self.status,
            "message": self.message,
            "facts": dict(self.facts),
        }


def gib(n_bytes: int) -> str:
    """Return bytes for people.

    Examples
    --------
    >>> gib(3 << 29)
    '1.5 GiB'
    """
    return f"{n_bytes / _GIB:.1f} GiB"
