"""The ``evaltools`` program: a table of lazily imported commands."""

from __future__ import annotations

from typing import NoReturn

import click

from embedstore import __version__
from embedstore.cli.contract import LazyGroup, run

_COMMANDS = {
    "tasks": ("evaltools.cli.listing:tasks", "List the tasks and what the store can answer now."),
    "protocols": ("evaltools.cli.listing:protocols", "List the protocols, or show one with its full settings."),
    "probe": ("evaltools.cli.probe:probe", "Fit a simple model on stored vectors and score it, with controls."),
}


@click.group(
    name="evaltools",
    cls=LazyGroup,
    lazy=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="evaltools")
def program() -> None:
    """Evaluate stored embeddings on a CPU, with patient intervals and controls.

    Example: evaltools probe --task lvef --pool meanstd
    """


def main() -> NoReturn:
    """Run the program."""
    run(program)
