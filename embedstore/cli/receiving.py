"""``embedstore snapshot import``: what comes from another lab, and what the commands that bring it ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, refuse_idle, say, store_option
from embedstore.cli.sharing import ID_PREFIX, dataset_option, encoder_option, together

if TYPE_CHECKING:
    from embedstore.snapshot.importing import ImportOutcome, ImportRequest
    from embedstore.store import Store

__all__ = ["import_", "import_options", "take_in"]

import_options = together(
    [
        dataset_option,
        encoder_option,
        click.option("--clips-only", is_flag=True, help="Leave the vectors of frames and windows out."),
        click.option(
            "--require-signature", type=click.Path(path_type=Path), help="Public key that must have signed."
        ),
        click.option("--allow-rollback", is_flag=True, help="Accept an older snapshot of the same sender."),
        click.option(
            "--quarantine-rows", is_flag=True, help="Leave out, and list, clips with vectors that are not finite."
        ),
        click.option(
            "--labels-from", type=click.Path(path_type=Path), help="Parquet or CSV with clip_id and your labels."
        ),
        click.option(
            "--map", "map_file", type=click.Path(path_type=Path), help="Map of pseudonyms that the sender gave."
        ),
        click.option(
            "--join-key", type=click.Path(path_type=Path), help="Key that both labs hold, to join by content."
        ),
    ]
)


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@import_options
@click.option("--id", "pinned_id", help="The snapshot id that it must have, or its beginning.")
@store_option
@json_option
@debug_option
def import_(source: Path, pinned_id: str | None, store_path: Path, as_json: bool, **options: Any) -> None:
    """Import a snapshot from a folder or archive, after it was checked in quarantine; then evaluate it.

    Example: embedstore snapshot import for-lab-b --labels-from my.parquet
    """
    pinned_id = None if pinned_id is None else pinned_id.removeprefix("sha256:")

    def bring(store: Store, request: ImportRequest) -> ImportOutcome:
        from embedstore.snapshot.importing import import_snapshot

        return import_snapshot(store, source, request)

    take_in(bring, pinned_id=pinned_id, store_path=store_path, as_json=as_json, **options)


def take_in(
    bring: Callable[[Store, ImportRequest], ImportOutcome],
    *,
    pinned_id: str | None,
    store_path: Path,
    as_json: bool,
    extra: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Import a snapshot as `import_options` say, and print what came.

    Parameters
    ----------
    bring : callable
        Brings the snapshot into the store.
    extra : mapping, optional
        Added to the JSON document; ``bring`` may fill it.
    """
    from embedstore.errors import ContentError
    from embedstore.snapshot.importing import ImportRequest
    from embedstore.snapshot.labels import join_labels, read_labels
    from embedstore.snapshot.pseudonyms import read_join_key, read_map
    from embedstore.snapshot.receiving import receiving_store
    from embedstore.snapshot.selection import Selection

    if options["labels_from"] is None:
        refuse_idle("is of --labels-from, which is not given", "map_file", "join_key")
    labels = None if options["labels_from"] is None else read_labels(options["labels_from"])
    pseudonyms = None if options["map_file"] is None else read_map(options["map_file"])
    shared_key = None if options["join_key"] is None else read_join_key(options["join_key"])
    request = ImportRequest(
        selection=Selection(
            datasets=options["datasets"], encoders=options["encoders"], clips_only=options["clips_only"]
        ),
        pinned_id=pinned_id,
        signer_key=options["require_signature"],
        allow_rollback=options["allow_rollback"],
        quarantine_rows=options["quarantine_rows"],
    )
    joined = []
    with receiving_store(store_path) as store:
        outcome = bring(store, request)
        document = outcome.to_dict()
        if labels is not None:
            names = document["datasets"]
            try:
                joined = join_labels(store, labels, datasets=names, pseudonyms=pseudonyms, join_key=shared_key)
            except ContentError as error:
                raise ContentError(f"the snapshot was imported, but no labels were joined: {error}") from error
    if as_json:
        emit_json({**document, **(extra or {}), "labels": [entry.to_dict() for entry in joined]})
        return
    say(f"snapshot {outcome.snapshot.id[:ID_PREFIX]}: {outcome.trust}")
    left_out = {(left.dataset, left.encoder): len(left.clips) for left in outcome.quarantined}
    for entry in outcome.snapshot.sets_of(outcome.selection):
        n_clips = entry.n_clips - left_out.get((entry.dataset, entry.title), 0)
        say(f"  {entry.title} on {entry.dataset}: {n_clips} clips")
    if not outcome.selection.is_whole:
        absent = len(outcome.snapshot.files) - len(outcome.snapshot.select(outcome.selection))
        say(f"  {absent} files of the snapshot were left out by choice; the same without the choice completes it")
    for name in outcome.kept_manifests:
        say(f"  {name}: your own manifest stays")
    for left in outcome.quarantined:
        say(f"  {left.encoder} on {left.dataset}: left out, with vectors that are not finite:")
        for clip_id in left.clips:
            say(f"    {clip_id}")
    for note in outcome.notes:
        say(f"  note: {note}")
    for join in joined:
        counts = f"{join.n_matched} clips matched, {join.n_unmatched} unmatched, {join.n_unused} rows unused"
        say(f"  labels of {join.dataset}: {counts} ({', '.join(join.columns)})")
