"""Places where snapshots lie outside this machine's stores: a folder, a web server, a bucket, a hub repository."""

from __future__ import annotations

from embedstore.snapshot.remotes.address import Address, open_remote
from embedstore.snapshot.remotes.remote import Broken, Remote

__all__ = ["Address", "Broken", "Remote", "open_remote"]
