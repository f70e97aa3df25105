"""Names on disk. `docs/format.md` is the specification; this module is the only place that spells them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FORMAT_VERSION = 1

STORE_FILE = "embedstore.json"
LOCAL_FILE = "local.json"
DESCRIPTION_FILE = "description.json"
PROVENANCE_FILE = "provenance.json"
INDEX_FILE = "index.parquet"
FRAME_INDEX_FILE = "frame_index.parquet"
WINDOW_INDEX_FILE = "window_index.parquet"
FAILURES_FILE = "failures.parquet"
ARRAY_KINDS = ("clips", "frames", "windows")
BANK_ARRAY = "vectors"
BANK_ROWS_FILE = "rows.parquet"
BANK_TABLES = (BANK_ROWS_FILE, "section_weights.parquet", "section_phenotypes.parquet")
STAGING_PREFIX = ".staging-"
TRASH_PREFIX = ".trash-"
HEAD_NAME = "head"

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LOG_NAME = re.compile(r"(\d{6,})\.json")


def is_digest(text: str) -> bool:
    """Return whether ``text`` is 64 lower-case hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def is_tag_name(text: str) -> bool:
    """Return whether ``text`` may name a tag; ``head`` is kept for the newest snapshot."""
    return _TAG.fullmatch(text) is not None and text.lower() != HEAD_NAME


def log_number(name: str) -> int | None:
    """Return the number of a log entry's file name, None for any other file."""
    match = _LOG_NAME.fullmatch(name)
    return int(match.group(1)) if match else None


@dataclass(frozen=True)
class StoreLayout:
    """Paths inside one store.

    Examples
    --------
    >>> StoreLayout(Path("store")).log_entry(7).name
    '000007.json'
    """

    root: Path

    @property
    def store_file(self) -> Path:
        """The file that makes a folder a store."""
        return self.root / STORE_FILE

    @property
    def local_file(self) -> Path:
        """Settings of this machine: media roots. Never exported."""
        return self.root / LOCAL_FILE

    @property
    def sets(self) -> Path:
        """Folder of committed sets."""
        return self.root / "sets"

    @property
    def manifests(self) -> Path:
        """Folder of manifests by id."""
        return self.root / "manifests"

    @property
    def prompts(self) -> Path:
        """Folder of committed banks: prompts, heads, candidates."""
        return self.root / "prompts"

    @property
    def snapshots(self) -> Path:
        """Folder of snapshot descriptions by id."""
        return self.root / "snapshots"

    @property
    def log(self) -> Path:
        """Folder of the log."""
        return self.root / "log"

    @property
    def log_mark(self) -> Path:
        """A number that the log has reached: what tells a lost last entry from one that never was."""
        return self.log / "reached.json"

    @property
    def tags(self) -> Path:
        """Folder of tags."""
        return self.root / "tags"

    @property
    def forgotten(self) -> Path:
        """Folder of records of what was removed for ever; made when first needed."""
        return self.root / "forgotten"

    @property
    def imports(self) -> Path:
        """Folder of what was received from others, by the id of the sent snapshot; made when first needed."""
        return self.root / "imports"

    @property
    def private(self) -> Path:
        """Folder of pseudonyms and disclosures, for the owner's eyes only. Never exported."""
        return self.root / "private"

    @property
    def builds(self) -> Path:
        """Folder of builds under way."""
        return self.root / "builds"

    @property
    def publish_lock(self) -> Path:
        """Shared by whoever writes and commits, held alone by gc while it takes things away."""
        return self.builds / "publish.lock"

    def set_folder(self, set_id: str) -> Path:
        """Folder of one committed set."""
        return self.sets / set_id

    def bank_folder(self, bank_id: str) -> Path:
        """Folder of one committed bank."""
        return self.prompts / bank_id

    def manifest_file(self, manifest_id: str) -> Path:
        """File of one manifest."""
        return self.manifests / f"{manifest_id}.parquet"

    def manifest_record(self, manifest_id: str) -> Path:
        """Size and digest of one manifest's file."""
        return self.manifests / f"{manifest_id}.json"

    def snapshot_file(self, snapshot_id: str) -> Path:
        """File of one snapshot."""
        return self.snapshots / f"{snapshot_id}.json"

    def log_entry(self, number: int) -> Path:
        """File of one log entry."""
        return self.log / f"{number:06d}.json"

    def tag_file(self, name: str) -> Path:
        """File of one tag."""
        return self.tags / f"{name}.json"

    def tag_end(self, name: str) -> Path:
        """File that says that a tag was deleted; no tag's own file ends like this."""
        return self.tags / f"{name}.deleted"

    def forgotten_record(self, number: int) -> Path:
        """File of one record of what was removed for ever."""
        return self.forgotten / f"{number:06d}.json"

    def build_lock(self, build_key: str) -> Path:
        """Lock of one build."""
        return self.builds / f"{build_key}.lock"

    def build_folder(self, build_key: str) -> Path:
        """Folder of one build under way."""
        return self.builds / build_key

    def pull_folder(self, snapshot_id: str, selection_digest: str) -> Path:
        """Folder to which a part of a snapshot is fetched before its import; an interrupted pull goes on in it."""
        return self.builds / f"{STAGING_PREFIX}pull-{snapshot_id[:16]}-{selection_digest[:16]}"

    @property
    def folders(self) -> tuple[Path, ...]:
        """Every folder that a new store has."""
        return (self.sets, self.manifests, self.prompts, self.snapshots, self.log, self.tags, self.builds)
