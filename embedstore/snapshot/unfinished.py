"""`unfinished_draw`: what a recipient is called whom nobody named, kept until what is made for them has ended.

Names are drawn for a recipient. Drawn anew by each attempt, an interrupted push would not be gone on with: the next
one would send another snapshot beside what lies there already.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from embedstore.disk import storage_errors
from embedstore.errors import CorruptionError
from embedstore.files import create_file, remove_file
from embedstore.identity import sha256_hex
from embedstore.json_files import read_sealed_json, seal_json
from embedstore.layout import StoreLayout
from embedstore.snapshot.pseudonyms import new_recipient

__all__ = ["UnnamedRecipient", "unfinished_draw"]


@dataclass(frozen=True)
class UnnamedRecipient:
    """A recipient with a random name.

    Attributes
    ----------
    name : str
    note : Path
        Where the name is kept for the next attempt.
    """

    name: str
    note: Path

    def keep(self) -> None:
        """Keep the name for the next attempt; call it before anything that is drawn for it is."""
        with storage_errors(self.note, "write"):
            self.note.parent.parent.mkdir(mode=0o700, exist_ok=True)
            self.note.parent.mkdir(mode=0o700, exist_ok=True)
        create_file(self.note, seal_json({"kind": "unfinished-draw", "recipient": self.name}), private=True)


@contextmanager
def unfinished_draw(layout: StoreLayout, *, place: str) -> Iterator[UnnamedRecipient]:
    """Yield the recipient of what goes to a place: that of an attempt which kept it and did not end, or a new one.

    They are forgotten when the block ends well: what goes to the same place later is for somebody else.

    Parameters
    ----------
    place : str
        A folder, a file or an address; only its digest is kept.

    Raises
    ------
    CorruptionError
        The note of the earlier attempt is damaged.
    StorageError
        It cannot be read or removed.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> layout, names = StoreLayout(Path(mkdtemp())), []
    >>> for is_cut_short in (True, False, False):
    ...     try:
    ...         with unfinished_draw(layout, place="s3://lab/echo") as recipient:
    ...             recipient.keep()
    ...             names.append(recipient.name)
    ...             _ = 1 / (not is_cut_short)
    ...     except ZeroDivisionError:
    ...         pass
    >>> names[0] == names[1], names[1] == names[2]
    (True, False)
    """
    note = layout.private / "unfinished" / f"{sha256_hex(place.encode())[:32]}.json"
    name = read_sealed_json(note).get("recipient") if note.exists() else new_recipient()
    if not isinstance(name, str):
        raise CorruptionError(f"{note} names no recipient; remove it, and names are drawn anew")
    yield UnnamedRecipient(name, note)
    remove_file(note)
