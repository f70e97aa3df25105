"""An S3-compatible bucket as a remote, through obstore (extra [remote]).

Credentials, region and endpoint come from the environment that every S3 client reads (``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``, ...), never from an address.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from embedstore.errors import EnvironmentFailure, MissingExtraError, PolicyError, UnknownNameError
from embedstore.files import FileRecord
from embedstore.snapshot.remotes.connection import TIMEOUT_S, is_private_host
from embedstore.snapshot.remotes.remote import BLOCK_BYTES, BLOCK_S, Broken, Stream, without_password

__all__ = ["S3Remote"]

_DIGEST_NOTE = "embedstore-sha256"
# obstore's own limit of 30 s a request is too short for a large file, and for a part of one on a slow line.
_LONGEST_REQUEST = timedelta(hours=24)
_PARTS_AT_A_TIME = 2  # of each file; several files go at a time
# One part of many that fails must not fail the file; a read is tried again by who asked for it.
_WRITE_RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=180)}
_READ_RETRIES = {"max_retries": 0, "retry_timeout": timedelta(seconds=60)}


class S3Remote:
    """Snapshots below a key prefix of a bucket.

    Raises
    ------
    MissingExtraError
        obstore is not installed.
    UnknownNameError
        The address names no bucket.
    """

    def __init__(self, url: str) -> None:
        try:
            import obstore
            from obstore.store import S3Store
        except ImportError as error:
            raise MissingExtraError(
                "s3:// needs the package obstore, which is not installed; install the extra with: "
                "pip install 'embedstore[remote]'"
            ) from error
        parts = urlsplit(url)
        if not parts.netloc or parts.username:
            raise UnknownNameError(f"{without_password(url)!r} names no bucket; write s3://BUCKET/FOLDER")
        self._obstore: Any = obstore
        self.url = url.rstrip("/")
        client: dict[str, Any] = {"timeout": _LONGEST_REQUEST}
        options: dict[str, Any] = {"client_options": client, "retry_config": _WRITE_RETRIES}
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint is not None:
            options["endpoint"] = endpoint
            host = urlsplit(endpoint).hostname
            if endpoint.startswith("http://") and host and _is_private(host):
                client["allow_http"] = True
        if "AWS_REGION" not in os.environ and "AWS_DEFAULT_REGION" not in os.environ:
            options["region"] = "us-east-1"
        if "AWS_ACCESS_KEY_ID" not in os.environ and "AWS_PROFILE" not in os.environ:
            options["skip_signature"] = True  # a public bucket
        try:
            prefix = parts.path.strip("/") or None
            self._writes = S3Store(parts.netloc, prefix=prefix, **options)
            # A part on its way up may wait longer for its answer than a reader for the next bytes.
            client["read_timeout"] = timedelta(seconds=TIMEOUT_S)
            options["retry_config"] = _READ_RETRIES
            self._reads = S3Store(parts.netloc, prefix=prefix, **options)
        except (obstore.exceptions.BaseError, ValueError, TypeError) as error:
            raise UnknownNameError(f"{url} cannot be used: {_first_line(error)}") from error

    def _fail(self, path: str, error: Exception) -> None:
        exceptions = self._obstore.exceptions
        if isinstance(error, exceptions.NotFoundError | FileNotFoundError):
            if "NoSuchBucket" in str(error):
                raise UnknownNameError(f"there is no bucket at {self.url}") from error
            raise FileNotFoundError(f"{self.url}/{path}") from error
        if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError | PermissionError):
            raise PolicyError(
                f"{self.url} is not open to this machine; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        if isinstance(error, exceptions.UnknownConfigurationKeyError | exceptions.NotSupportedError):
            raise EnvironmentFailure(f"{self.url} cannot be used: {_first_line(error)}") from error
        raise Broken(_first_line(error)) from error

    @contextmanager
    def open(self, path: str, *, start: int = 0) -> Iterator[Stream]:
        """Open an object for reading; `FileNotFoundError` where there is none."""
        options = {"range": {"offset": start}} if start else None
        try:
            found = self._obstore.get(self._reads, path, options=options)
        except (self._obstore.exceptions.BaseError, OSError) as error:
            self._fail(path, error)
            raise
        yield Stream(found.range[0], self._blocks(found))

    def _blocks(self, found: Any) -> Iterator[memoryview]:
        buffer, filled, until = memoryview(bytearray(BLOCK_BYTES)), 0, time.monotonic() + BLOCK_S
        try:
            # obstore would gather a block for as long as it takes: a trickle must be seen as one.
            for frame in found.stream(min_chunk_size=1):
                view = memoryview(frame)
                while view:
                    count = min(len(view), len(buffer) - filled)
                    buffer[filled : filled + count] = view[:count]
                    view, filled = view[count:], filled + count
                    if filled == len(buffer) or time.monotonic() >= until:
                        yield buffer[:filled]
                        filled, until = 0, time.monotonic() + BLOCK_S
            if filled:
                yield buffer[:filled]
        except (self._obstore.exceptions.BaseError, OSError) as error:
            raise Broken(_first_line(error)) from error

    def require_writable(self) -> None:
        """Do nothing: `put` finds out."""

    def put(self, path: str, content: Path | bytes, *, record: FileRecord) -> None:
        """Write an object; S3 shows it whole or not at all."""
        try:
            note = {_DIGEST_NOTE: record.sha256}
            self._obstore.put(self._writes, path, content, attributes=note, max_concurrency=_PARTS_AT_A_TIME)
        except (self._obstore.exceptions.BaseError, OSError) as error:
            self._fail(path, error)

    def holds(self, path: str, record: FileRecord) -> bool:
        """Compare the size, and the digest that `put` noted beside the object."""
        try:
            found = self._obstore.get(self._reads, path, options={"head": True})
        except (self._obstore.exceptions.BaseError, OSError) as error:
            try:
                self._fail(path, error)
            except FileNotFoundError:
                return False
            raise
        return bool(found.meta["size"] == record.size and dict(found.attributes).get(_DIGEST_NOTE) == record.sha256)

    def finish(self) -> None:
        """Do nothing: each file is there when it is put."""

    def abort(self) -> None:
        """Do nothing: obstore ends a transfer by its own time-outs."""


def _is_private(host: str) -> bool:
    try:
        return is_private_host(host)
    except Broken as error:
        raise EnvironmentFailure(f"{error}; check AWS_ENDPOINT_URL and the network") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
