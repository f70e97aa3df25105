"""``embedstore build``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, say, store_option
from embedstore.cli.launching import launch_options, launch_request
from embedstore.cli.options import named_digests, named_paths
from embedstore.cli.progress import Bar
from embedstore.errors import EXIT_OK, EXIT_PARTIAL

if TYPE_CHECKING:
    from embedstore.build.banks import BankOutcome
    from embedstore.build.run import BuildOutcome

_FAILURES_LISTED = 10


def _report(outcomes: Sequence[BuildOutcome]) -> None:
    for outcome in outcomes:
        counts = f"{outcome.n_ok} of {outcome.n_expected} clips"
        if outcome.note:
            say(f"{outcome.dataset}  {outcome.encoder}: {outcome.note}")
            continue
        if outcome.units_open:
            say(f"{outcome.dataset}  {outcome.encoder}: {outcome.units_open} units open, waiting for other workers")
            continue
        dims = f"{outcome.dim}-d clips, {outcome.n_frames} frame vectors"
        reused = f", {outcome.n_reused} reused" if outcome.n_reused else ""
        done = "nothing to do" if outcome.n_reused == outcome.n_ok else f"{outcome.seconds:.1f} s"
        set_name = (outcome.set_id or "")[:12]
        say(f"{outcome.dataset}  {outcome.encoder}: {counts}{reused}, {dims}, set {set_name}, {done}")
        if outcome.rest_seconds is not None:
            say(f"  the clips beyond --limit would take about {outcome.rest_seconds:.0f} s at this speed")
        for clip_id, reason, detail in outcome.failed_clips[:_FAILURES_LISTED]:
            say(f"  failed: {clip_id}: {reason}: {detail}")
        if outcome.n_failed > _FAILURES_LISTED:
            say(f"  ... {outcome.n_failed} failed in all; see embedstore show {set_name}")


def _report_banks(banks: Sequence[BankOutcome]) -> None:
    """Say which prompt banks and heads could not be made."""
    for bank in banks:
        if bank.status in ("skipped", "refused"):
            say(f"{bank.encoder}: the {bank.kind} bank {bank.name} was {bank.status}: {bank.detail}", err=True)


@click.command()
@click.option("--encoder", "encoders", multiple=True, required=True, help="NAME[@VARIANT]; repeatable; or all.")
@click.option("--manifest", "manifests", multiple=True, help="Manifest name or file [default: all of the store].")
@click.option("--root", "roots", multiple=True, help="[NAME=]DIR of the media, in place of the remembered one.")
@click.option("--weights", multiple=True, help="NAME=FILE_OR_FOLDER: checkpoint of an encoder.")
@click.option(
    "--trust-checkpoint",
    "trusted",
    multiple=True,
    help="NAME=SHA256: open this .pt file although it names code; none of it is run, its objects are left empty.",
)
@click.option(
    "--sampling", help="Frames: uniform:N, linspace:N, all, consecutive:N, stride:SxN, rate:HZxN, keyframe:ROLE."
)
@click.option("--where", help='Only clips that fulfil a condition on manifest columns, e.g. "view == A4C".')
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N patients.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option("--batch-size", type=click.IntRange(min=1), help="Rows of each forward [default: by device].")
@click.option("--workers", "n_workers", type=click.IntRange(min=0), help="Decode processes [default: cores - 1].")
@click.option(
    "--block-mib",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="MiB of prepared frames held at once; models that do not fit together take turns at such blocks.",
)
@click.option("--precision", type=click.Choice(["float32", "bf16"]), default="float32", show_default=True)
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True)
@click.option("--no-frames", is_flag=True, help="Store no frame vectors.")
@click.option("--on-error", type=click.Choice(["record", "stop"]), default="record", show_default=True)
@click.option("--shard", help="I/N, or auto: this worker's share of the work units.")
@launch_options
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@store_option
@json_option
@debug_option
@click.pass_context
def build(ctx: click.Context, /, **options: Any) -> None:
    """Decode and encode the clips of manifests into the store; goes on where an earlier run stopped.

    Example: embedstore build --encoder efficientnet-lite0
    """
    from embedstore.build.launchers import array_script, launch
    from embedstore.build.run import BuildRequest, Progress, build_sets
    from embedstore.build.shard import parse_shard
    from embedstore.snapshot.receiving import receiving_store

    as_json = options.pop("as_json")
    launched = launch_request(ctx)
    request = BuildRequest(
        encoders=options["encoders"],
        manifests=options["manifests"],
        roots=named_paths(options["roots"], option="--root", default_name=""),
        weights=named_paths(options["weights"], option="--weights"),
        trusted=named_digests(options["trusted"], option="--trust-checkpoint"),
        sampling=options["sampling"],
        where=options["where"],
        limit=options["limit"],
        device=options["device"],
        batch_size=options["batch_size"],
        n_workers=options["n_workers"],
        block_bytes=options["block_mib"] << 20,
        precision=options["precision"],
        dtype=options["dtype"],
        with_frames=not options["no_frames"],
        stop_on_error=options["on_error"] == "stop",
        shard=parse_shard(options["shard"], os.environ),
        dry_run=options["dry_run"],
    )
    banks: list[BankOutcome] = []
    with Bar(unit="clip", is_scaled=False) as bar:
        progress = Progress(
            begin=bar.begin,
            clip=lambda clip_id, reason: bar.add(1, n_failed=int(reason is not None)),
            note=lambda sentence: say(sentence, err=True),
            bank=banks.append,
        )
        with receiving_store(options["store_path"]) as store:
            if launched is None:
                outcomes = build_sets(store, request, progress=progress)
            else:
                outcomes = launch(store, request, launched, launcher=options["launcher"], progress=progress)
    script = None
    if launched is not None and options["launcher"] == "slurm" and request.dry_run:
        script = array_script(launched, folder=Path.cwd())
    if as_json:
        sets = [outcome.to_dict() for outcome in outcomes]
        emit_json(
            {"sets": sets, "banks": [bank.to_dict() for bank in banks], **({"script": script} if script else {})}
        )
    elif script is not None:
        click.echo(script, nl=False)
    else:
        _report(outcomes)
        for bank in banks:
            if bank.status == "made":
                said = f"{bank.n_rows} rows, {bank.seconds:.1f} s" + (f"; {bank.detail}" if bank.detail else "")
                say(f"{bank.encoder}: {bank.kind} bank {bank.name}, {said}")
    _report_banks(banks)
    # A wrong tokenizer or checkpoint is an error, though the sets are in the store; a file that is not there is none.
    refused = [bank.exit_code for bank in banks if bank.exit_code]
    ctx.exit(next(iter(refused), EXIT_PARTIAL if any(outcome.n_failed for outcome in outcomes) else EXIT_OK))
