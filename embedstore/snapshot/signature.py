"""Signatures over a snapshot's document, with the SSH keys that people have: ``ssh-keygen -Y``.

A signature lies beside the document as ``manifest.json.sig``. Digests show that nothing changed since the document
was written; only a signature, or an id that came by another way, shows who wrote it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from embedstore.errors import MissingExtraError, PolicyError, StorageError
from embedstore.files import read_file, replace_file
from embedstore.snapshot.describe import DOCUMENT_FILE, MAX_DOCUMENT_BYTES, SIGNATURE_FILE
from embedstore.snapshot.sources import open_source

__all__ = ["NAMESPACE", "Signature", "check_signature", "read_signature", "sign", "signature_path"]

NAMESPACE = "embedstore-snapshot"  # a signature made for anything else does not count here
_MAX_BYTES = 1 << 20
_TIMEOUT_S = 60
_SIGNER = "signer"
_GOOD = re.compile(r'Good "' + NAMESPACE + r'" signature (?:for (?P<who>\S+) )?with (?P<key>\S+) key (?P<print>\S+)')


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Who signed.

    Attributes
    ----------
    signer : str
        Name in the file of allowed signers, else the key's fingerprint.
    fingerprint : str
        Of the key, as ssh-keygen prints it.
    is_known : bool
        Whether the key is one that the user trusts; otherwise it only says that whoever has that key signed.
    """

    signer: str
    fingerprint: str
    is_known: bool

    @property
    def words(self) -> str:
        """For a person."""
        return f"signed by {self.signer}" + ("" if self.is_known else " (a key that you have not named)")


def _program() -> str:
    found = shutil.which("ssh-keygen")
    if found is None:
        raise MissingExtraError("signatures need the program ssh-keygen (package openssh-client), which is not here")
    return found


def _run(arguments: list[str], payload: bytes) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            [_program(), *arguments], input=payload, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StorageError(f"ssh-keygen did not answer within {_TIMEOUT_S} s") from error


def sign(snapshot: str | Path, key: str | Path) -> Path:
    """Sign the document of a snapshot with a private key, or the public key of one that an agent holds.

    Parameters
    ----------
    snapshot : str or Path
        Its folder or main archive.

    Returns
    -------
    Path
        The signature, where `read_signature` looks for it.

    Raises
    ------
    StorageError
        ssh-keygen cannot sign with this key.
    """
    source, target = open_source(Path(snapshot)), signature_path(Path(snapshot))
    payload = b"".join(bytes(block) for block in source.read(DOCUMENT_FILE, MAX_DOCUMENT_BYTES))
    done = _run(["-Y", "sign", "-n", NAMESPACE, "-f", str(key)], payload)
    if done.returncode != 0:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise StorageError(f"ssh-keygen cannot sign with {key}: {reason[-1] if reason else 'no reason given'}")
    replace_file(target, done.stdout)
    return target


def signature_path(snapshot: Path) -> Path:
    """Return where the signature of a folder or of an archive lies."""
    return snapshot / SIGNATURE_FILE if snapshot.is_dir() else snapshot.with_name(f"{snapshot.name}.sig")


def read_signature(source: Path) -> bytes | None:
    """Return the signature beside a document, or beside an archive as ``NAME.zip.sig``; None without one."""
    path = signature_path(source)
    return read_file(path, max_bytes=_MAX_BYTES) if path.is_file() and not path.is_symlink() else None


def check_signature(document: bytes, signature: bytes | None, *, key: str | Path | None) -> Signature | None:
    """Check a signature.

    Parameters
    ----------
    key : str, Path or None
        A public key (``id_ed25519.pub``) or a file of allowed signers; with one, a signature by it is required.

    Returns
    -------
    Signature or None
        None where there is no signature and none is required.

    Raises
    ------
    PolicyError
        A required signature is missing or by another key, or a signature does not fit the document.
    """
    if signature is None:
        if key is not None:
            raise PolicyError("the snapshot is not signed, and --require-signature asks for a signature")
        return None
    with tempfile.TemporaryDirectory(prefix="embedstore-signature-") as place:
        signature_file, allowed = Path(place) / "signature", Path(place) / "allowed"
        signature_file.write_bytes(signature)
        if key is None:
            done = _run(["-Y", "check-novalidate", "-n", NAMESPACE, "-s", str(signature_file)], document)
            found = _GOOD.search(done.stdout.decode("utf-8", "replace"))
            if done.returncode != 0 or found is None:
                raise PolicyError("the snapshot's signature does not fit its document: one of the two was changed")
            return Signature(signer=found["print"], fingerprint=found["print"], is_known=False)
        allowed.write_bytes(_allowed_signers(Path(key)))
        principals = _run(["-Y", "find-principals", "-s", str(signature_file), "-f", str(allowed)], document)
        names = principals.stdout.decode("utf-8", "replace").splitlines()
        for name in names if principals.returncode == 0 else []:
            arguments = ["-Y", "verify", "-n", NAMESPACE, "-I", name, "-s", str(signature_file), "-f", str(allowed)]
            done = _run(arguments, document)
            found = _GOOD.search(done.stdout.decode("utf-8", "replace"))
            if done.returncode == 0 and found is not None:
                signer = found["print"] if name == _SIGNER else name
                return Signature(signer=signer, fingerprint=found["print"], is_known=True)
    raise PolicyError(f"the snapshot is not signed by a key in {key}, or was changed since it was")


def _allowed_signers(key: Path) -> bytes:
    """Return a file of allowed signers: as it is, or made of one public key."""
    text = read_file(key, max_bytes=_MAX_BYTES).decode("utf-8", "replace")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if "PRIVATE KEY" in text:
        raise PolicyError(f"{key} is a private key; --require-signature takes the public one ({key}.pub)")
    is_key = len(lines) == 1 and re.match(r"(?:ssh-|ecdsa-|sk-)", lines[0])
    return (f'{_SIGNER} namespaces="{NAMESPACE}" {lines[0]}\n' if is_key else text).encode()
