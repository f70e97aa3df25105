"""Commands that look after the store: status, commit, gc, forget-patient."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, say, store_option
from embedstore.errors import EXIT_OK, EXIT_PARTIAL

if TYPE_CHECKING:
    from embedstore.upkeep.forget import ForgetOutcome
    from embedstore.upkeep.gc import GcOutcome

_PREFIX = 12


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"


@click.command()
@store_option
@json_option
@debug_option
def status(store_path: Path, as_json: bool) -> None:
    """Show for each manifest and encoder how many clips are done, failed or missing, and the builds under way.

    Example: embedstore status
    """
    from embedstore.store import Store
    from embedstore.upkeep.status import read_status

    lines = list(read_status(Store.open(store_path)))
    if as_json:
        emit_json({"status": [line.to_dict() for line in lines]})
        return
    if not lines:
        say("the store has no set and no build under way")
        return
    names = [max(len(head), *(len(getattr(line, key)) for line in lines)) for head, key in _STATUS_NAMES]
    heads = "  ".join(f"{head:<{width}}" for (head, _), width in zip(_STATUS_NAMES, names, strict=True))
    say(f"{heads}  {'clips':>7} {'done':>7} {'failed':>7} {'missing':>7}")
    for line in lines:
        shown = "  ".join(
            f"{getattr(line, key):<{width}}" for (_, key), width in zip(_STATUS_NAMES, names, strict=True)
        )
        expected, missing = ("?" if count is None else count for count in (line.expected, line.missing))
        say(f"{shown}  {expected:>7} {line.ok:>7} {line.failed:>7} {missing:>7}")
        for build in line.builds:
            state = "running" if build.live else "waiting for the same build command"
            if not build.live and not build.resumable:
                state = "overtaken by another build; gc removes it"
            elif not build.live and not build.units_open:
                state = "complete; embedstore commit packs it"
            units = f"{build.units_done} units done, {build.units_open} open"
            counts = f"{build.clips_ok} clips done, {build.clips_failed} failed"
            say(f"  build {build.build[:_PREFIX]}: {units}, {counts}; {state}")


_STATUS_NAMES = (("data set", "dataset"), ("encoder", "title"))


@click.command()
@click.argument("build", required=False)
@store_option
@json_option
@debug_option
@click.pass_context
def commit(ctx: click.Context, /, build: str | None, store_path: Path, as_json: bool) -> None:
    """Complete builds whose units are all done; BUILD is the beginning of one's key (see embedstore status).

    Example: embedstore commit
    """
    from embedstore.store import Store
    from embedstore.upkeep.builds import find_build, read_builds
    from embedstore.upkeep.complete import complete_build, complete_builds

    store = Store.open(store_path)
    if build is None:
        outcomes = complete_builds(store)
    else:
        outcomes = [complete_build(store, find_build(read_builds(store), build))]
    if as_json:
        emit_json({"sets": [outcome.to_dict() for outcome in outcomes]})
    for outcome in outcomes if not as_json else ():
        counts = f"{outcome.clips_ok} clips, {outcome.clips_failed} failed"
        say(
            {
                "committed": f"{outcome.what}: set {(outcome.set_id or '')[:_PREFIX]}, {counts}",
                "open": f"{outcome.what}: {outcome.units_open} units open, {outcome.units_done} done; run the build",
                "live": f"{outcome.what}: running on this machine, {outcome.units_open} units open",
                "overtaken": f"{outcome.what}: its set has been built otherwise since; gc removes this build",
                "damaged": f"build {outcome.build[:_PREFIX]}: its plan cannot be read; run the same build command",
            }[outcome.state]
        )
    if not outcomes and not as_json:
        say("no build is under way")
    ctx.exit(EXIT_PARTIAL if any(outcome.set_id and outcome.clips_failed for outcome in outcomes) else EXIT_OK)


def _say_swept(outcome: GcOutcome, grace_h: float) -> None:
    verb = "would remove" if outcome.is_dry else "removed"
    for leftover in outcome.removed:
        say(f"{verb} {leftover.kind} {leftover.path.name[:20]} ({leftover.what}): {leftover.why}")
    for leftover in outcome.waiting:
        kept = f"kept for {leftover.least_h - leftover.idle_h:.1f} h more: {leftover.kind}"
        say(f"{kept} {leftover.path.name[:20]} ({leftover.what}): {leftover.why}")
    for build in outcome.unfinished:
        state = (
            "running" if build.is_live else "unfinished, its build command goes on with it; --abandoned gives it up"
        )
        say(f"kept: build {build.key[:_PREFIX]} ({build.title}, {len(build.receipts)} units done): {state}")
    if not outcome.removed:
        say(f"nothing to remove that has been of no use for {grace_h:g} h")
    elif outcome.is_dry:
        say(
            f"{_megabytes(outcome.n_bytes_freed)} would be freed; nothing was touched, run again with --yes to remove"
        )
    else:
        say(f"{_megabytes(outcome.n_bytes_freed)} freed")


@click.command()
@click.option("--yes", is_flag=True, help="Remove; without it, only say what would be removed.")
@click.option("--grace", "grace_h", type=click.FloatRange(min=0), default=24.0, show_default=True, metavar="HOURS")
@click.option("--abandoned", is_flag=True, help="Give up unfinished builds too, with the units that they finished.")
@store_option
@json_option
@debug_option
def gc(yes: bool, grace_h: float, abandoned: bool, store_path: Path, as_json: bool) -> None:
    """Remove what neither the head, a tag nor a build needs and what has been of no use for the grace period.

    Example: embedstore gc --yes
    """
    from embedstore.store import Store
    from embedstore.upkeep.gc import collect_garbage

    outcome = collect_garbage(Store.open(store_path), grace_h=grace_h, apply=yes, abandoned=abandoned)
    if as_json:
        emit_json({**outcome.to_dict(), "grace_hours": grace_h})
    else:
        _say_swept(outcome, grace_h)


def _say_forgotten(outcome: ForgetOutcome, patient_id: str) -> None:
    verb = "would be removed" if outcome.is_dry else "removed"
    for dataset, count in outcome.n_clips.items():
        say(f"patient {patient_id}: {count} clips of {dataset}")
    for set_id, what in outcome.sets.items():
        new = outcome.rewritten.get(set_id, "")
        instead = (
            f", written again as {new[:_PREFIX]}" if new else (", nothing was left of it" if new is None else "")
        )
        say(f"{verb}: set {set_id[:_PREFIX]} ({what}){instead}")
    for manifest_id, what in outcome.manifests.items():
        say(f"{verb}: {what} {manifest_id[:_PREFIX]}")
    for build in outcome.builds:
        say(f"{verb}: build {build.key[:_PREFIX]} ({build.title}), {len(build.receipts)} finished units are lost")
    for held in outcome.snapshots:
        names = f", tagged {', '.join(held.tags)}" if held.tags else ""
        where = f"snapshot {held.snapshot_id[:_PREFIX]} (commit {held.number}{names})"
        say(f"held the patient{'' if outcome.is_dry else ', no longer restorable'}: {where}")
    if outcome.tags:
        say(f"tags that stay as names of snapshots that can no longer be restored: {', '.join(outcome.tags)}")
    if not outcome.n_clips:
        say(f"no manifest has a patient {patient_id}; what an earlier, interrupted run left is cleared up with --yes")
        return
    for copy in outcome.sent:
        held_it = "held" if copy.is_certain else "may have held"
        sent = f"snapshot {copy.disclosure.snapshot_id[:_PREFIX]} of {copy.disclosure.time}"
        say(f"tell {copy.disclosure.recipient}: {sent} {held_it} the patient, there called {copy.patient}")
    say("not reached: copies sent elsewhere, backups, and manifest files outside the store that have the patient")
    freed = _megabytes(outcome.n_bytes_freed)
    say(
        f"{freed} would be removed; nothing was touched, run again with --yes"
        if outcome.is_dry
        else f"{freed} removed"
    )


@click.command(name="forget-patient")
@click.argument("patient_id", metavar="ID")
@click.option("--dataset", "datasets", multiple=True, help="Data set in which the patient stands; repeatable.")
@click.option("--yes", is_flag=True, help="Remove; without it, only say what would be removed.")
@store_option
@json_option
@debug_option
def forget_patient(patient_id: str, datasets: tuple[str, ...], yes: bool, store_path: Path, as_json: bool) -> None:
    """Remove every vector and manifest row of a patient from the store, its earlier snapshots and tags included.

    Example: embedstore forget-patient 0042 --dataset mine --yes
    """
    from embedstore.store import Store
    from embedstore.upkeep.forget import forget_patient as forget

    outcome = forget(Store.open(store_path), patient_id, datasets=datasets, apply=yes)
    if as_json:
        emit_json(outcome.to_dict())
    else:
        _say_forgotten(outcome, patient_id)
