"""``evaltools tasks`` and ``evaltools protocols``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from embedstore.cli.contract import debug_option, emit_json, json_option, say, store_option


@click.command()
@store_option
@json_option
@debug_option
@click.pass_context
def tasks(context: click.Context, store_path: Path, as_json: bool) -> None:
    """List the tasks and what the store can answer now.

    Example: evaltools tasks
    """
    import embedstore
    from evaltools.selection import describe_tasks

    # Tasks can be listed where no store was named and none is there.
    named = context.get_parameter_source("store_path") is not ParameterSource.DEFAULT
    store = embedstore.open(store_path) if named or store_path.exists() else None
    described = describe_tasks(store)
    if as_json:
        emit_json({"tasks": described})
        return
    for task in described:
        unit = f" ({task['unit']})" if task["unit"] else ""
        how = f"{task['kind']} by {task['protocol']}, ranked by {task['main_metric']}"
        say(f"{task['name']}: {task['title']}{unit}, {how}")
        for run in task["runs"]:
            state = ", ".join(run["encoders"]) if run["reason"] is None else f"not now: {run['reason']}"
            say(f"  {run['dataset']}: {run['n_labelled']} labelled clips in {run['column']}; {state}")
            if len(run["rows"]) > 1:
                rows = (row["row"] + ("" if row["default"] else " (by name)") for row in run["rows"])
                say(f"    rows: {', '.join(rows)}")
            if run["note"]:
                say(f"    {run['note']}")
        for one in task["missing"] if store else []:
            say(f"  {one['dataset']}: missing: {one['reason']}")
        if not task["runs"] and not (store and task["missing"]):
            say(f"  no data set with the label {task['column']}" if store else "  (no store here)")


@click.command()
@click.argument("name", required=False, metavar="[NAME|FILE.yaml]")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting, repeatable.")
@json_option
@debug_option
def protocols(name: str | None, settings: tuple[str, ...], as_json: bool) -> None:
    """List the protocols, or show one with its full settings and digest.

    Example: evaltools protocols ridge
    """
    from evaltools.heads import HEADS_PROTOCOL
    from evaltools.knn import KNN_PROTOCOLS, KnnOptions, knn_protocols
    from evaltools.protocols import PROTOCOLS, get_protocol
    from evaltools.zeroshot_protocols import ZERO_SHOT_PROTOCOLS

    if settings and name is None:
        raise click.UsageError("--set changes a protocol, and none is named")
    shown: list[Any]
    others = {**KNN_PROTOCOLS, **ZERO_SHOT_PROTOCOLS, HEADS_PROTOCOL.name: HEADS_PROTOCOL}
    if name is not None and name in others and not settings:
        shown = [others[name]]
    elif name is not None and name in KNN_PROTOCOLS:
        kind = KNN_PROTOCOLS[name].kinds[0]
        shown = list(knn_protocols(name, kind=kind, options=KnnOptions(settings=settings)))
    elif name in others:
        raise click.UsageError(f"{name} fits nothing; where it has settings, evaltools zeroshot takes their --set")
    else:
        everything = [*PROTOCOLS.values(), *others.values()]
        shown = [get_protocol(name, settings=settings)] if name else everything
    if as_json:
        emit_json({"protocols": [protocol.to_dict() for protocol in shown]})
        return
    for protocol in shown:
        say(f"{protocol.name} ({', '.join(protocol.kinds)}; {protocol.digest[:12]}): {protocol.summary}")
        if name:
            say(f"from {protocol.source or 'a file'}; digest {protocol.digest}")
            for difference in protocol.differences:
                say(f"differs: {difference}")
            say(json.dumps(protocol.settings, indent=2))
