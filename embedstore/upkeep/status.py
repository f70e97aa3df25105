"""Status: for each manifest and encoder, how many clips have vectors, failed, or were never tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from embedstore.embedding_set import EmbeddingSet
from embedstore.history import SetEntry
from embedstore.store import Store
from embedstore.upkeep.builds import BuildState, read_builds

__all__ = ["BuildStatus", "StatusLine", "read_status"]


@dataclass(frozen=True, kw_only=True)
class BuildStatus:
    """A build under way: units done and open, what they gave, whether a process of this host works on it."""

    build: str
    units_done: int
    units_open: int
    clips_ok: int
    clips_failed: int
    live: bool
    resumable: bool


@dataclass(frozen=True, kw_only=True)
class StatusLine:
    """One data set and one encoder.

    Attributes
    ----------
    expected : int or None
        Clips of the manifest; None where the store has no manifest of the data set.
    ok, failed : int
        Clips of the manifest that the head's set has vectors of, and that it records as failed.
    missing : int or None
        Clips of the manifest that were never tried, those of open builds included.
    """

    dataset: str
    encoder: str
    variant: str
    fingerprint: str
    title: str
    set_id: str | None
    expected: int | None
    ok: int
    failed: int
    missing: int | None
    builds: tuple[BuildStatus, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only."""
        return {
            "dataset": self.dataset,
            "encoder": self.encoder,
            "variant": self.variant,
            "fingerprint": self.fingerprint,
            "set": self.set_id,
            "clips_expected": self.expected,
            "clips_ok": self.ok,
            "clips_failed": self.failed,
            "clips_missing": self.missing,
            "builds": [vars(build) for build in self.builds],
        }


def _of_build(build: BuildState) -> BuildStatus:
    return BuildStatus(
        build=build.key,
        units_done=len(build.receipts),
        units_open=len(build.open_units),
        clips_ok=sum(receipt.rows["clips"] for receipt in build.receipts),
        clips_failed=sum(receipt.rows["failures"] for receipt in build.receipts),
        live=build.is_live,
        resumable=build.is_current,
    )


def _ids(opened: EmbeddingSet) -> tuple[set[str], set[str]]:
    """Return the clips with vectors and those that failed."""
    return set(opened.index.column("clip_id").to_pylist()), set(opened.failures.column("clip_id").to_pylist())


def read_status(store: Store) -> Iterator[StatusLine]:
    """Yield a line for each manifest of the head and each encoder that the store has or is being built with.

    Encoders are told apart by fingerprint. A build that is only starting has no line yet.

    Raises
    ------
    CorruptionError
        A manifest or a set's table is not what was written.
    """
    entries: dict[tuple[str, str], SetEntry] = {(e.dataset, e.fingerprint): e for e in store.entries()}
    encoders = {e.fingerprint: (e.encoder, e.variant, e.title) for e in entries.values()}
    builds: dict[tuple[str, str], list[BuildState]] = {}
    for build in read_builds(store):
        if build.plan is not None:
            spec = build.plan.spec
            encoders.setdefault(spec.fingerprint, (spec.name, spec.variant, spec.title))
            builds.setdefault((build.plan.dataset, spec.fingerprint), []).append(build)
    clip_ids = {entry.name: set(store.open_manifest(entry).clip_ids) for entry in store.manifests()}
    pairs = {(name, fingerprint) for name in clip_ids for fingerprint in encoders} | set(entries) | set(builds)
    for dataset, fingerprint in sorted(pairs, key=lambda pair: (pair[0], encoders[pair[1]], pair[1])):
        encoder, variant, title = encoders[fingerprint]
        entry = entries.get((dataset, fingerprint))
        expected = clip_ids.get(dataset)
        ok, failed = (set[str](), set[str]()) if entry is None else _ids(store.open_set(entry.set_id))
        if expected is not None:
            ok, failed = ok & expected, failed & expected
        yield StatusLine(
            dataset=dataset,
            encoder=encoder,
            variant=variant,
            fingerprint=fingerprint,
            title=title,
            set_id=None if entry is None else entry.set_id,
            expected=None if expected is None else len(expected),
            ok=len(ok),
            failed=len(failed),
            missing=None if expected is None else len(expected - ok - failed),
            builds=tuple(_of_build(build) for build in builds.get((dataset, fingerprint), ())),
        )
