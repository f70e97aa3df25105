"""Commands that read the store: ls, show, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, say, store_option
from embedstore.errors import AmbiguousNameError, CorruptionError, UnknownNameError

if TYPE_CHECKING:
    from embedstore.bank import VectorBank
    from embedstore.build.recompute import RecomputeOutcome
    from embedstore.embedding_set import EmbeddingSet
    from embedstore.snapshot.verify import VerifyOutcome
    from embedstore.store import Store

_PREFIX = 12
_LEAST_PREFIX = 4


def _listed(opened: EmbeddingSet) -> dict[str, Any]:
    arrays = opened.described["arrays"]
    frames = arrays.get("frames")
    return {
        "dataset": opened.dataset,
        "encoder": opened.spec.name,
        "variant": opened.spec.variant,
        "set": opened.set_id,
        "fingerprint": opened.fingerprint,
        "clips": arrays["clips"]["n_rows"],
        "frames": 0 if frames is None else frames["n_rows"],
        "dim": arrays["clips"]["dim"],
        "frame_dim": None if frames is None else frames["dim"],
        "dtype": opened.spec.dtype,
        "bytes": opened.n_bytes,
        "failed": opened.n_failed,
    }


@click.command()
@store_option
@json_option
@debug_option
def ls(store_path: Path, as_json: bool) -> None:
    """List the sets of the store, and its banks of prompts, heads and candidates.

    Example: embedstore ls
    """
    from embedstore.cli.prompts import listed_bank
    from embedstore.store import Store

    store = Store.open(store_path)
    sets = [_listed(store.open_set(entry.set_id)) for entry in store.entries()]
    banks = [listed_bank(bank) for bank in store.banks()]
    if as_json:
        emit_json({"sets": sets, "banks": banks})
        return
    if not sets:
        say("the store has no set yet; build one with embedstore build --encoder NAME")
        return
    widest = max(len("data set"), *(len(s["dataset"]) for s in sets))
    titles = {entry.set_id: entry.title for entry in store.entries()}
    width = max(len("encoder"), *(len(title) for title in titles.values()))
    heads = f"{'clips':>7} {'frames':>8} {'dim':>5} {'MB':>8} {'failed':>6}"
    say(f"{'data set':<{widest}}  {'encoder':<{width}}  {heads}  set")
    for s in sets:
        say(
            f"{s['dataset']:<{widest}}  {titles[s['set']]:<{width}}  {s['clips']:>7} {s['frames']:>8} {s['dim']:>5} "
            f"{s['bytes'] / 1e6:>8.1f} {s['failed']:>6}  {s['set'][:_PREFIX]}"
        )
    for bank in banks:
        size = f"{bank['rows']} rows, {bank['dim']}-d, {bank['bytes'] / 1e6:.1f} MB"
        say(f"{bank['encoder']}  {bank['kind']} bank {bank['name']}: {size}, {bank['bank'][:_PREFIX]}")


def _find_set(store: Store, text: str) -> EmbeddingSet:
    """Find a set by id or its beginning, or as DATASET/ENCODER[@VARIANT]."""
    entries = store.entries()
    matching = {entry.set_id for entry in entries if len(text) >= _LEAST_PREFIX and entry.set_id.startswith(text)}
    if len(matching) > 1:
        raise AmbiguousNameError(f"several sets begin with {text!r}: {', '.join(sorted(m[:16] for m in matching))}")
    if matching:
        return store.open_set(matching.pop())
    dataset, separator, encoder = text.partition("/")
    if separator:
        return store.get(dataset=dataset, encoder=encoder)
    raise UnknownNameError(f"no set {text!r}; give the beginning of its id or DATASET/ENCODER (see embedstore ls)")


def _find_bank(store: Store, text: str) -> VectorBank | None:
    """Find a bank by its id or its beginning."""
    if len(text) < _LEAST_PREFIX:
        return None
    matching = [bank for bank in store.banks() if bank.bank_id.startswith(text)]
    if len(matching) > 1:
        raise AmbiguousNameError(f"several banks begin with {text!r}: {', '.join(b.bank_id[:16] for b in matching)}")
    return matching[0] if matching else None


def _show_bank(bank: VectorBank, *, as_json: bool) -> None:
    from embedstore.cli.prompts import listed_bank

    document = {**listed_bank(bank), "spec": dict(bank.spec), "provenance": dict(bank.provenance)}
    if as_json:
        emit_json({**document, "table": bank.rows.to_pylist() if bank.kind != "candidates" else None})
        return
    for key in ("kind", "name", "encoder", "bank", "weights_sha256", "rows", "dim", "bytes"):
        say(f"{key:<14} {document[key]}")
    for part, word in (("spec", "spec"), ("provenance", "made with")):
        for key, value in document[part].items():
            say(f"{word} {key:<{24 if part == 'spec' else 19}} {value}")
    if bank.kind == "candidates":
        say(f"phenotypes     {', '.join(bank.rows.column_names[1:])}")
        return
    for row in bank.rows.to_pylist():
        of = row["label"] if row["label"] is not None else row.get("value", "")
        said = repr(row["prompt"]) if bank.kind == "prompts" else f"{row['activation']} {row['unit'] or ''}"
        say(f"{row['task']:<14} {'' if of is None else of!s:<12} {said}")


@click.command()
@click.argument("set_name", metavar="SET")
@store_option
@json_option
@debug_option
def show(set_name: str, store_path: Path, as_json: bool) -> None:
    """Show one set, or one bank: SET is the beginning of its id, or of a set DATASET/ENCODER.

    Example: embedstore show phantom/efficientnet-lite0
    """
    from embedstore.store import Store

    store = Store.open(store_path)
    bank = _find_bank(store, set_name)
    if bank is not None:
        _show_bank(bank, as_json=as_json)
        return
    opened = _find_set(store, set_name)
    failures = opened.failures.to_pylist()
    document = {
        **_listed(opened),
        "spec": opened.spec.to_dict(),
        "failures": [{key: row[key] for key in ("clip_id", "reason", "detail")} for row in failures],
        "provenance": dict(opened.provenance),
    }
    if as_json:
        emit_json(document)
        return
    for key in ("dataset", "encoder", "variant", "set", "fingerprint", "clips", "frames", "dim", "dtype", "bytes"):
        say(f"{key:<14} {document[key]}")
    for key, value in document["spec"].items():
        say(f"spec {key:<24} {value}")
    for key, value in document["provenance"].items():
        say(f"made with {key:<19} {value}")
    for row in document["failures"]:
        say(f"failed         {row['clip_id']}: {row['reason']}: {row['detail']}")


def _recompute(store: Store, outcome: VerifyOutcome, n_clips: int) -> list[RecomputeOutcome]:
    """Embed clips of every set again; a clip whose vector differs is a problem of the outcome."""
    from embedstore.build.recompute import recompute_set
    from embedstore.snapshot.received import read_received
    from embedstore.snapshot.verify import VerifyProblem

    received = read_received(store.layout)
    found = []
    for entry in store.entries():
        is_received = received.of_set(entry.set_id) is not None
        again = recompute_set(store, store.open_set(entry.set_id), n_clips=n_clips, by_id=is_received)
        found.append(again)
        outcome.problems += [
            VerifyProblem(f"sets/{again.set_id}/clips", "recompute", (row, row + 1), "this clip's vector is another")
            for row in again.differing
        ]
    return found


@click.command()
@click.option("--quick", is_flag=True, help="Structure, sizes and counts only; reads no vector.")
@click.option("--recompute", type=click.IntRange(min=1), help="Also embed N clips of each set again, and compare.")
@store_option
@json_option
@debug_option
@click.pass_context
def verify(ctx: click.Context, /, quick: bool, recompute: int | None, store_path: Path, as_json: bool) -> None:
    """Check that the store holds what was written: every file, digest, row and table. Never repairs.

    Example: embedstore verify
    """
    from embedstore.snapshot.verify import verify_store
    from embedstore.store import Store

    store = Store.open(store_path)
    outcome = verify_store(store, quick=quick)
    recomputed = _recompute(store, outcome, recompute) if recompute and outcome.ok else []
    told = f"{len(outcome.problems)} problem{'s' if outcome.problems[1:] else ''}"
    if as_json:
        emit_json({**outcome.to_dict(), "recomputed": [found.to_dict() for found in recomputed]})
    else:
        for found in recomputed:
            what = f"skipped: {found.skipped}" if found.skipped else f"{found.n_clips} clips embedded again"
            how = f", max |delta| {found.max_delta:.2g}, min cosine {found.min_cosine:.6f}" if found.n_clips else ""
            say(f"recompute {found.dataset}  {found.encoder}: {what}{how}")
        for problem in outcome.problems:
            rows = f" rows {problem.rows[0]} to {problem.rows[1] - 1}" if problem.rows else ""
            say(f"{problem.kind}: {problem.file}{rows}" + (f": {problem.detail}" if problem.detail else ""))
        state = "no problem found" if outcome.ok else told
        say(f"verify ({outcome.level}): {outcome.files_checked} files checked, {state}")
    if not outcome.ok:
        say(f"Error: the store at {store_path} has {told}; nothing was repaired", err=True)
        ctx.exit(CorruptionError.exit_code)
