"""``embedstore prompts``: embed a bank of prompts, or bring published candidates; list what there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedstore.cli.contract import LazyGroup, debug_option, emit_json, json_option, say, store_option
from embedstore.cli.options import named_digests, named_paths

if TYPE_CHECKING:
    from embedstore.bank import VectorBank
    from embedstore.build.banks import BankOutcome

_PREFIX = 12
_COMMANDS = {
    "add": ("embedstore.cli.prompts:add", "Embed a bank of prompts with an encoder's text tower."),
    "ls": ("embedstore.cli.prompts:ls", "List the installed prompt banks and the banks of the store."),
}


@click.group(cls=LazyGroup, lazy=_COMMANDS)
def prompts() -> None:
    """Embed banks of prompts, and list the banks of the store.

    Example: embedstore prompts ls
    """


def listed_bank(bank: VectorBank) -> dict[str, Any]:
    """Return what listings say of a bank."""
    tasks = [] if bank.kind == "candidates" else sorted(set(bank.rows.column("task").to_pylist()))
    return {
        "bank": bank.bank_id,
        "kind": bank.kind,
        "name": bank.name,
        "encoder": bank.encoder,
        "weights_sha256": bank.weights_sha256,
        "bank_digest": bank.spec.get("bank_digest"),
        "rows": len(bank),
        "dim": bank.vectors.shape[1],
        "bytes": bank.n_bytes,
        "tasks": tasks,
    }


def _say_outcome(outcome: BankOutcome) -> None:
    if outcome.bank_id is None:
        say(f"{outcome.encoder}: {outcome.kind} bank {outcome.name} was {outcome.status}: {outcome.detail}")
        return
    done = "nothing to do" if outcome.status == "kept" else f"{outcome.seconds:.1f} s"
    bank = f"{outcome.n_rows} rows, bank {outcome.bank_id[:_PREFIX]}, {done}"
    say(
        f"{outcome.encoder}: {outcome.kind} bank {outcome.name}, {bank}"
        + (f"; {outcome.detail}" * bool(outcome.detail))
    )


@click.command()
@click.argument("file")
@click.option("--encoder", "encoders", multiple=True, required=True, help="NAME[@VARIANT]; repeatable.")
@click.option(
    "--format",
    "file_format",
    default="bank",
    show_default=True,
    help="bank: YAML file or installed bank; cardiobench: prompts.py of your clone; echoprime: folder model_data.",
)
@click.option("--weights", multiple=True, help="NAME=FILE_OR_FOLDER: checkpoint of an encoder.")
@click.option("--trust-checkpoint", "trusted", multiple=True, help="NAME=SHA256: as for embedstore build.")
@click.option(
    "--trust-pickle",
    "pickles",
    multiple=True,
    help="FILE=SHA256: convert this .pkl file of the folder, once, in a limited process by an allow-list.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@store_option
@json_option
@debug_option
def add(file: str, encoders: tuple[str, ...], file_format: str, store_path: Path, **options: Any) -> None:
    """Embed a bank of prompts with an encoder's text tower, or bring the candidates that it was published with.

    Example: embedstore prompts add mine.yaml --encoder echo-clip
    """
    from embedstore.build.prompts import AddRequest, add_banks
    from embedstore.store import Store

    request = AddRequest(
        file=file,
        encoders=encoders,
        file_format=file_format,
        weights=named_paths(options["weights"], option="--weights"),
        trusted=named_digests(options["trusted"], option="--trust-checkpoint"),
        pickles=named_digests(options["pickles"], option="--trust-pickle"),
        device=options["device"],
    )
    outcomes = add_banks(Store.open(store_path), request, note=lambda sentence: say(sentence, err=True))
    if options["as_json"]:
        emit_json({"banks": [outcome.to_dict() for outcome in outcomes]})
        return
    for outcome in outcomes:
        _say_outcome(outcome)


@click.command()
@store_option
@json_option
@debug_option
def ls(store_path: Path, as_json: bool) -> None:
    """List the installed prompt banks and the banks of the store.

    Example: embedstore prompts ls
    """
    from embedstore.prompts import prompt_banks
    from embedstore.store import Store

    installed = [
        {"name": bank.name, "prompts": len(bank), "tasks": list(bank.tasks), "bank_digest": bank.digest}
        for bank in prompt_banks().values()
    ]
    banks = [listed_bank(bank) for bank in Store.open(store_path).banks()]
    if as_json:
        emit_json({"installed": installed, "banks": banks})
        return
    for installed_bank in prompt_banks().values():
        tasks = ", ".join(installed_bank.tasks)
        say(f"installed  {installed_bank.name}: {len(installed_bank)} prompts of {tasks}")
    for bank in banks:
        size = f"{bank['rows']} rows, {bank['dim']}-d"
        say(f"{bank['encoder']}  {bank['kind']} bank {bank['name']}: {size}, bank {bank['bank'][:_PREFIX]}")
    if not banks:
        say("the store has no bank yet; embedstore build --encoder NAME embeds the installed ones")
