"""A data set repository on the Hugging Face hub as a remote.

Reading needs no package: the hub serves plain files over HTTPS, and what arrives is hashed here, since its own client
compares sizes only. Writing goes through huggingface_hub, all files of a push in one commit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedstore.errors import EnvironmentFailure, MissingExtraError, PolicyError, UnknownNameError
from embedstore.files import FileRecord
from embedstore.snapshot.remotes.http import HttpRemote
from embedstore.snapshot.remotes.remote import Broken, Stream

__all__ = ["HubRemote"]

_ADDRESS = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?((?:/[\w.-]+)*)/?")


class HubRemote:
    """Snapshots below a folder of a data set repository.

    Raises
    ------
    UnknownNameError
        The address is not ``hf://datasets/OWNER/NAME[@REVISION][/FOLDER]``.
    EnvironmentFailure
        ``HF_HUB_OFFLINE`` says to stay away from the hub.
    """

    def __init__(self, url: str) -> None:
        found = _ADDRESS.fullmatch(url)
        if found is None:
            raise UnknownNameError(f"{url!r} names no data set repository; write hf://datasets/OWNER/NAME[/FOLDER]")
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise EnvironmentFailure(f"HF_HUB_OFFLINE is set, so {url} is not reached; unset it, or pull from a copy")
        self.url = url.rstrip("/")
        self._repository, self._revision, folder = found[1], found[2] or "main", found[3].strip("/")
        self._prefix = f"{folder}/" if folder else ""
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        token = _token()
        self._files = HttpRemote(
            f"{endpoint}/datasets/{self._repository}/resolve/{self._revision}{'/' + folder if folder else ''}",
            headers={"Authorization": f"Bearer {token}"} if token else None,
        )
        self._waiting: list[tuple[str, Path | bytes]] = []

    @contextmanager
    def open(self, path: str, *, start: int = 0) -> Iterator[Stream]:
        """Open a file for reading; `FileNotFoundError` where the repository has none."""
        try:
            with self._files.open(path, start=start) as stream:
                yield stream
        except PolicyError as error:
            raise PolicyError(
                f"{self.url} is not open to this machine: it may be private, gated or not there; log in with "
                "`hf auth login` or set HF_TOKEN"
            ) from error

    def require_writable(self) -> None:
        """Raise `MissingExtraError` where huggingface_hub is not installed."""
        try:
            import huggingface_hub  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(
                "pushing to hf:// needs the package huggingface_hub, which is not installed; install the extra with: "
                "pip install 'embedstore[remote]'"
            ) from error

    def put(self, path: str, content: Path | bytes, *, record: FileRecord) -> None:
        """Note a file for the commit that `finish` makes."""
        self._waiting.append((self._prefix + path, content))

    def holds(self, path: str, record: FileRecord) -> bool:
        """Return False: huggingface_hub itself finds what the hub has already, by digest."""
        return False

    def finish(self) -> None:
        """Commit what was put, all or nothing.

        Raises
        ------
        MissingExtraError
            huggingface_hub is not installed.
        PolicyError
            The hub does not let this user write there.
        """
        if not self._waiting:
            return
        self.require_writable()
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HfHubHTTPError

        operations: list[Any] = [
            CommitOperationAdd(
                path_in_repo=path, path_or_fileobj=content if isinstance(content, bytes) else str(content)
            )
            for path, content in self._waiting
        ]
        try:
            HfApi().create_commit(
                self._repository,
                operations,
                repo_type="dataset",
                revision=self._revision,
                commit_message="Add an embedstore snapshot",
            )
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            if status in (401, 403, 404):
                raise PolicyError(
                    f"{self.url} is not there or not open to you (the hub answers {status}): make the repository on "
                    "the hub, private unless the data may be public, and log in with `hf auth login`"
                ) from error
            raise Broken(f"the hub answers {status}") from error
        except (OSError, ValueError) as error:
            raise Broken(str(error) or type(error).__name__) from error
        self._waiting = []

    def abort(self) -> None:
        """End every download that is under way."""
        self._files.abort()


def _token() -> str | None:
    try:
        from huggingface_hub import get_token
    except ImportError:
        return os.environ.get("HF_TOKEN")
    token: str | None = get_token()
    return token
