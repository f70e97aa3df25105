"""`Selection`: what somebody takes of a snapshot; and ``partial.json``, which says so beside a part of one."""

from __future__ import annotations

from pathlib import Path

from pydantic import StrictBool, ValidationError

from embedstore.errors import FormatError
from embedstore.files import read_file
from embedstore.identity import canonical_json, sha256_hex
from embedstore.json_files import parse_json
from embedstore.snapshot.parts import Name, Part

__all__ = ["PARTIAL_FILE", "Selection", "partial_bytes", "read_partial"]

PARTIAL_FILE = "partial.json"


class Selection(Part):
    """What somebody takes of a snapshot; empty lists take all.

    `datasets` and `encoders` (titles or names) choose sets, `clips_only` leaves frames and windows out.
    """

    datasets: tuple[Name, ...] = ()
    encoders: tuple[Name, ...] = ()
    clips_only: StrictBool = False

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return self == Selection()

    @property
    def digest(self) -> str:
        """SHA-256 of what is chosen."""
        return sha256_hex(canonical_json(self.model_dump(mode="json")))


def read_partial(folder: Path, snapshot_id: str) -> Selection:
    """Return what a folder holds of a snapshot, as its ``partial.json`` says; all of it where there is none.

    Raises
    ------
    FormatError
        The file is not of this form, or speaks of another snapshot.
    """
    path = folder / PARTIAL_FILE
    if not path.exists():
        return Selection()
    described = parse_json(read_file(path, max_bytes=1 << 20), source=str(path))
    try:
        if described["snapshot"] != snapshot_id:
            raise FormatError(f"{path} speaks of another snapshot")
        return Selection.model_validate(described["selection"])
    except (KeyError, TypeError, ValidationError) as error:
        raise FormatError(f"{path} does not say what was taken: {error}") from error


def partial_bytes(snapshot_id: str, selection: Selection) -> bytes:
    """Return ``partial.json`` for a transfer that leaves something out."""
    return canonical_json({"snapshot": snapshot_id, "selection": selection.model_dump(mode="json")})
