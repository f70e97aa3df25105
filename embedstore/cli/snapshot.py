"""``embedstore snapshot``: what can be done with snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from embedstore.cli.contract import LazyGroup, debug_option, emit_json, json_option, say, store_option

if TYPE_CHECKING:
    from embedstore.snapshot.diff import SetDiff, SnapshotDiff

_PREFIX = 12
_CLIPS_LISTED = 10

_COMMANDS = {
    "create": ("embedstore.cli.sharing:create", "Name a part of a snapshot, by data set, encoder or task."),
    "ls": ("embedstore.cli.sharing:ls", "List snapshots that are tagged, were received, were sent."),
    "export": ("embedstore.cli.sending:export", "Export a snapshot that may be sent, as a folder or archive."),
    "import": ("embedstore.cli.receiving:import_", "Import a snapshot after checking it in quarantine."),
    "push": ("embedstore.cli.transfer:push", "Send a snapshot to a folder, a bucket or the hub."),
    "pull": ("embedstore.cli.transfer:pull", "Fetch a snapshot, or a part of it, and import it."),
    "verify": ("embedstore.cli.sharing:verify", "Check a snapshot's folder or archive."),
    "diff": ("embedstore.cli.snapshot:diff", "Show what changed between two snapshots."),
}


@click.group(cls=LazyGroup, lazy=_COMMANDS)
def snapshot() -> None:
    """Create, send, receive, check and compare snapshots of the store.

    Example: embedstore snapshot export for-lab-b --recipient lab-b
    """


def _say_clips(word: str, clip_ids: tuple[str, ...]) -> None:
    if clip_ids:
        rest = f", ... ({len(clip_ids)} in all)" if len(clip_ids) > _CLIPS_LISTED else ""
        say(f"    {word}: {', '.join(clip_ids[:_CLIPS_LISTED])}{rest}")


def _say_set(entry: SetDiff) -> None:
    counts = [
        f"{count} clips {word}"
        for word, count in (
            ("bit-identical", entry.n_identical),
            ("numerically equivalent", entry.n_equivalent),
            ("changed", len(entry.changed)),
            ("added", len(entry.added)),
            ("removed", len(entry.removed)),
        )
        if count
    ]
    say(f"  {entry.encoder} on {entry.dataset}: {entry.status}" + (f" ({', '.join(counts)})" if counts else ""))
    if entry.status == "not-restorable":
        say("    gc or forget-patient removed one of the two sets; there is nothing left to compare")
    if not entry.same_fingerprint:
        say("    made with different settings or weights: the fingerprints differ")
    if entry.n_other_source and entry.same_fingerprint:
        say(f"    {entry.n_other_source} clips have another content or sampling")
    if entry.is_reordered:
        say("    the clips stand in another order")
    for array in entry.arrays:
        if array.only_in:
            say(f"    {array.kind}: only in {array.only_in.upper()}")
        elif array.max_delta is None:
            say(f"    {array.kind}: cannot be compared")
        elif array.max_delta > 0:
            say(f"    {array.kind}: max |delta| {array.max_delta:.3g}, min cosine {array.min_cosine:.7f}")
    for word in ("added", "removed", "changed"):
        _say_clips(word, getattr(entry, word))
    if entry.failed_a != entry.failed_b:
        say(f"    failed clips: {entry.failed_a} in A, {entry.failed_b} in B")


def _say_diff(found: SnapshotDiff) -> None:
    say(f"A {found.a[:_PREFIX]}  B {found.b[:_PREFIX]}" + ("  the same snapshot" if found.a == found.b else ""))
    for entry in found.sets:
        _say_set(entry)
    if any(entry.n_equivalent for entry in found.sets):
        say(
            "  numerically equivalent: no value is off by more than 2^-9 (float16) or 1e-4 (float32) of the vector's "
            "largest value, and the cosine is at least 0.9999"
        )
    for manifest in found.manifests:
        pairs = (("media", manifest.media_changed), ("annotations", manifest.annotations_changed))
        digests = ", ".join(f"{word} digest" for word, is_changed in pairs if is_changed)
        say(f"  manifest {manifest.name}: {manifest.status}" + (f" ({digests})" if digests else ""))
    for word, banks in (("added", found.prompts_added), ("removed", found.prompts_removed)):
        for bank in banks:
            say(f"  prompt bank {bank[:_PREFIX]}: {word}")


@click.command()
@click.argument("a")
@click.argument("b", default="head")
@click.option("--other-store", type=click.Path(path_type=Path), help="Store in which B stands, where not the same.")
@store_option
@json_option
@debug_option
def diff(a: str, b: str, other_store: Path | None, store_path: Path, as_json: bool) -> None:
    """Show what changed from snapshot A to B (ids, tags or head): sets, clips, vectors, manifests.

    Example: embedstore snapshot diff paper-v1 head
    """
    from embedstore.snapshot.diff import diff_snapshots
    from embedstore.snapshot.tags import find_snapshot
    from embedstore.store import Store

    store = Store.open(store_path)
    store_b = store if other_store is None else Store.open(other_store)
    first, second = store.snapshot(find_snapshot(store, a)), store_b.snapshot(find_snapshot(store_b, b))
    found = diff_snapshots(store, first, second, store_b=store_b)
    if as_json:
        emit_json(found.to_dict())
    else:
        _say_diff(found)
