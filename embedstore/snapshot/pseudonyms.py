"""`Pseudonyms`: random names for patients, studies and clips, drawn once for a recipient and kept here.

A name derived from an id, by a hash or an HMAC, is a name that whoever has the key can compute again; a name drawn at
random says nothing. The map is the only way back. It stays in the store's ``private`` folder, readable by its owner
alone, until it is handed over by ``--with-map``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from embedstore.disk import storage_errors
from embedstore.errors import FormatError, PolicyError, UnknownNameError
from embedstore.files import read_file, replace_file
from embedstore.identity import canonical_json, digest_json
from embedstore.json_files import parse_json, seal_json
from embedstore.layout import StoreLayout
from embedstore.locks import host_lock
from embedstore.snapshot.paths import path_name

__all__ = [
    "PUBLIC_RECIPIENT",
    "Kind",
    "Pseudonyms",
    "all_maps",
    "forget_names",
    "keyed_digest",
    "new_recipient",
    "read_join_key",
    "read_map",
]

Kind = Literal["clip", "patient", "study"]
PUBLIC_RECIPIENT = "public"
_KINDS: tuple[Kind, ...] = ("clip", "patient", "study")
_LETTER = {"clip": "c", "patient": "p", "study": "s"}
_MAX_MAP_BYTES = 1 << 30
_LOCK_WAIT_S = 30.0
_LEAST_KEY_BYTES = 32


def new_recipient() -> str:
    """Return a random name for a recipient that was not named."""
    return f"recipient-{secrets.token_hex(4)}"


def _draw(kind: Kind) -> str:
    # 130 random bits in base 32: letters and digits that no spreadsheet and no file system changes.
    return f"{_LETTER[kind]}-{base64.b32encode(secrets.token_bytes(17)).decode().lower()[:26]}"


def keyed_digest(key: bytes, digest: str) -> str:
    """Return the HMAC-SHA-256 of a digest, 64 hexadecimal digits."""
    return hmac.new(key, digest.encode(), hashlib.sha256).hexdigest()


def read_join_key(path: str | Path) -> bytes:
    """Read a key that both labs hold: at least 32 random bytes, or as many written in hexadecimal.

    Raises
    ------
    PolicyError
        It is too short to be a secret.
    """
    payload = read_file(Path(path), max_bytes=1 << 16)
    stripped = payload.strip()
    try:
        key = bytes.fromhex(stripped.decode("ascii"))
    except ValueError:
        # Random bytes may begin or end with those of white space; what an editor adds to text is no part of it.
        is_text = stripped.isascii() and stripped.decode("ascii").isprintable()
        key = stripped if is_text else payload
    if len(key) < _LEAST_KEY_BYTES or len(set(key)) < _LEAST_KEY_BYTES // 4:
        raise PolicyError(
            f"the join key {path} holds {len(key)} bytes that are too few or too alike; make one with: "
            "openssl rand -hex 32"
        )
    return key


class Pseudonyms:
    """The names of one recipient. Draw with `name` inside `hold`, and `save` before anything that bears them is seen.

    Parameters
    ----------
    recipient : str
        Any name; it stays here.

    Attributes
    ----------
    source : str
        Random name of the lineage of what this recipient gets.
    """

    def __init__(self, layout: StoreLayout, recipient: str) -> None:
        if not recipient.strip() or not recipient.isprintable() or len(recipient) > 200:
            raise UnknownNameError(f"a recipient needs a printable name, got {recipient!r}")
        self.recipient = recipient
        self.path = layout.private / "pseudonyms" / f"{path_name(recipient.lower())}.json"
        self._lock = self.path.with_suffix(".lock")
        self._names: dict[str, dict[str, dict[str, str]]] = {}
        self.source, self._secret = secrets.token_hex(16), secrets.token_bytes(32)
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        described = _parse_map(self.path)
        self.source, self._secret = described["source"], bytes.fromhex(described["secret"])
        self._names = described["names"]

    def name(self, dataset: str, kind: Kind, original: str | None) -> str | None:
        """Return the pseudonym of a clip, patient or study; drawn now where there is none. None stays None."""
        if original is None:
            return None
        names = self._names.setdefault(dataset, {}).setdefault(kind, {})
        if original not in names:
            names[original] = _draw(kind)
        return names[original]

    def key(self, purpose: str) -> bytes:
        """Return a key of this recipient for one purpose; it never leaves."""
        return hmac.new(self._secret, purpose.encode(), hashlib.sha256).digest()

    def to_dict(self) -> dict[str, Any]:
        """Return the map as JSON values."""
        return {
            "kind": "pseudonyms",
            "recipient": self.recipient,
            "source": self.source,
            "secret": self._secret.hex(),
            "names": self._names,
        }

    def save(self) -> None:
        """Write the map, mode 0600; call it inside `hold`, so that nobody else's names are lost."""
        replace_file(self.path, seal_json(self.to_dict()), private=True)

    def hold(self) -> AbstractContextManager[None]:
        """Return a context in which no other process of this host draws names for this recipient."""
        with storage_errors(self.path.parent, "write"):
            self.path.parent.parent.mkdir(mode=0o700, exist_ok=True)
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
        busy = f"another export for {self.recipient!r} draws pseudonyms; try again when it has ended"
        return host_lock(self._lock, shared=False, wait_s=_LOCK_WAIT_S, busy=busy)

    def reload(self) -> None:
        """Read the map again where there is one; call it inside `hold`."""
        if self.path.exists():
            self._read()

    def hand_over(self, path: Path, datasets: Iterable[str]) -> None:
        """Write the map of some data sets to a file for an agreed recipient: names only, no secret; mode 0600."""
        names = {dataset: self._names.get(dataset, {}) for dataset in datasets}
        document = {"kind": "pseudonym-map", "recipient": self.recipient, "source": self.source, "names": names}
        with storage_errors(path, "write"):
            path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, canonical_json(document), private=True)

    def forget(self, dataset: str, originals: Mapping[Kind, Iterable[str]]) -> bool:
        """Take names out of the map; return whether any were there."""
        found = False
        for kind, ids in originals.items():
            names = self._names.get(dataset, {}).get(kind, {})
            for original in ids:
                found |= names.pop(original, None) is not None
        return found

    def known(self, dataset: str, kind: Kind, original: str) -> str | None:
        """Return the pseudonym where one was drawn."""
        return self._names.get(dataset, {}).get(kind, {}).get(original)


def _parse_map(path: Path) -> dict[str, Any]:
    described = parse_json(read_file(path, max_bytes=_MAX_MAP_BYTES), source=str(path))
    seal = described.pop("seal", None) if isinstance(described, dict) else None
    is_map = isinstance(described, dict) and described.get("kind") == "pseudonyms"
    if not is_map or seal != digest_json(described):
        raise FormatError(f"{path} is no map of pseudonyms, or is damaged; restore it from a backup")
    return dict(described)


def read_map(path: Path) -> dict[str, dict[str, str]]:
    """Read a map that was handed over: data set to {original clip id: pseudonym}.

    Raises
    ------
    FormatError
        It is none.
    """
    described = parse_json(read_file(path, max_bytes=_MAX_MAP_BYTES), source=str(path))
    try:
        if described["kind"] not in ("pseudonym-map", "pseudonyms"):
            raise FormatError(f"{path} is no map of pseudonyms")
        return {
            str(dataset): {str(old): str(new) for old, new in kinds.get("clip", {}).items()}
            for dataset, kinds in described["names"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} is no map of pseudonyms: {error}") from error


def all_maps(layout: StoreLayout) -> list[Pseudonyms]:
    """Return the maps of every recipient of a store."""
    folder = layout.private / "pseudonyms"
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return [Pseudonyms(layout, str(_parse_map(path)["recipient"])) for path in paths]


def forget_names(layout: StoreLayout, dataset: str, originals: Mapping[Kind, Iterable[str]]) -> None:
    """Take the names of a forgotten patient out of the maps of every recipient."""
    for names in all_maps(layout):
        with names.hold():
            names.reload()
            if names.forget(dataset, originals):
                names.save()
