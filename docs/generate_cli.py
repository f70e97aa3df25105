"""Write docs/cli.md from the commands' own help; a test fails when the file is stale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from embedstore.cli.main import program as embedstore_program
from evaltools.cli.main import program as evaltools_program

HEAD = """# Commands

Generated from `--help` by `make docs`. Exit codes: 0 done; 1 the machine failed; 2 an unknown option or name;
3 done, but some clips failed; 4 content breaks a rule; 5 another build of this set is running; 130 interrupted.
"""


def commands_of(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """Yield (full name, help text) of a command and everything below it."""
    widths = {"max_content_width": 100, "terminal_width": 100}
    own_name = name.rpartition(" ")[2]
    with command.make_context(own_name, [], parent=parent, resilient_parsing=True, **widths) as context:
        yield name, command.get_help(context)
        if isinstance(command, click.Group):
            for child in command.list_commands(context):
                below = command.get_command(context, child)
                assert below is not None
                yield from commands_of(below, f"{name} {child}", context)


def render() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for group, name in ((embedstore_program, "embedstore"), (evaltools_program, "evaltools")):
        for full_name, text in commands_of(group, name):
            parts.append(f"## {full_name}\n\n```\n{text.strip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(render())
