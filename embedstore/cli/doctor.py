"""``embedstore doctor``."""

from __future__ import annotations

from pathlib import Path

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, say, store_option

_MARKS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


@click.command()
@store_option
@json_option
@debug_option
@click.pass_context
def doctor(ctx: click.Context, store_path: Path, as_json: bool) -> None:
    """Check what builds need on this machine; each line says what to do, and a problem is exit code 1.

    Example: embedstore doctor
    """
    from embedstore.doctor import examine

    findings = []
    for finding in examine(store_path):
        findings.append(finding)
        if not as_json:
            say(f"{_MARKS[finding.status]:<8} {finding.area:<9} {finding.name:<26} {finding.message}")
    ok = all(finding.status != "problem" for finding in findings)
    if as_json:
        emit_json({"ok": ok, "checks": [finding.to_dict() for finding in findings]})
    ctx.exit(0 if ok else 1)
