"""``embedstore ingest``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, say, store_option
from embedstore.errors import EXIT_OK, EXIT_PARTIAL

if TYPE_CHECKING:
    from embedstore.ingest import IngestOutcome

_IDS_LISTED = 10


def _report(outcome: IngestOutcome) -> None:
    frames = f", {outcome.n_frames} frame vectors" if outcome.frame_dim is not None else ""
    say(
        f"{outcome.dataset}  {outcome.encoder}: {outcome.n_ok} of {outcome.n_expected} clips, {outcome.dim}-d clips"
        f"{frames}, set {outcome.set_id[:12]}, {outcome.seconds:.1f} s"
    )
    for what, ids in (
        ("clips without a row", outcome.clips_without_row),
        ("rows without a clip", outcome.rows_without_clip),
    ):
        if ids:
            more = ", ..." if len(ids) > _IDS_LISTED else ""
            say(f"  {what}: {len(ids)}: {', '.join(ids[:_IDS_LISTED])}{more}")
    for note in outcome.notes:
        say(f"  note: {note}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--manifest", required=True, help="Manifest name or file: which clips the vectors belong to.")
@click.option("--encoder", required=True, help="NAME[@VARIANT] under which to keep them [default: NAME@ingested].")
@click.option("--ids", "id_table", type=click.Path(path_type=Path), help="CSV with the ids of a .npy, in row order.")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True)
@click.option("--pooling", type=click.Choice(["mean-l2", "mean"]), help="Frames to clips [default: mean-l2].")
@click.option("--replace", "replaces", is_flag=True, help="Take the place of other vectors ingested by this name.")
@store_option
@json_option
@debug_option
@click.pass_context
def ingest(ctx: click.Context, /, store_path: Path, as_json: bool, **options: Any) -> None:
    """Bring your own vectors: FILE is .npz, .npy with --ids, .parquet, .h5, or a folder that CardioBench wrote.

    Example: embedstore ingest vectors.npz --manifest mine --encoder my-encoder
    """
    from embedstore.cli.progress import Bar
    from embedstore.ingest import IngestProgress, IngestRequest, ingest_vectors
    from embedstore.snapshot.receiving import receiving_store

    with Bar(unit="row") as bar, receiving_store(store_path) as store:
        progress = IngestProgress(begin=bar.begin, rows=bar.add)
        outcome = ingest_vectors(store, IngestRequest(**options), progress=progress)
    if as_json:
        emit_json(outcome.to_dict())
    else:
        _report(outcome)
    ctx.exit(EXIT_PARTIAL if outcome.n_failed else EXIT_OK)
