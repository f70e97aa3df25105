"""The documents are true: the command reference is fresh, links lead somewhere, what the README runs exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parent.parent


def test_the_command_reference_is_fresh() -> None:
    # In a Python of its own: click keeps a command's help option as it was first asked for, by whichever test.
    script = "import runpy, sys; sys.stdout.write(runpy.run_path('docs/generate_cli.py')['render']())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / "cli.md").read_text() == done.stdout, "run `make docs`"


@pytest.mark.parametrize("path", sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]), ids=lambda p: p.name)
def test_files_that_documents_name_are_there(path: Path) -> None:
    for name in re.findall(r"`((?:docs|benchmarks|tests)/[\w./-]+\.\w+)`", path.read_text()):
        assert (ROOT / name).exists(), name


def _known_options(words: list[str]) -> set[str]:
    from embedstore.cli.main import program as embedstore_program
    from evaltools.cli.main import program as evaltools_program

    command: click.Command = {"embedstore": embedstore_program, "evaltools": evaltools_program}[words[0]]
    at = 1
    while isinstance(command, click.Group):
        context = command.make_context(words[0], [], resilient_parsing=True)
        below = command.get_command(context, words[at])
        assert below is not None, words
        command, at = below, at + 1
    return {option for parameter in command.params for option in parameter.opts}


def test_the_commands_of_the_readme_exist_with_their_options() -> None:
    text = (ROOT / "README.md").read_text().replace("\\\n", "")  # a command may go on in the next line
    lines = [line.split("#")[0] for line in text.splitlines() if line.startswith(("embedstore ", "evaltools "))]
    assert len(lines) >= 5
    for line in lines:
        for part in line.split("&&"):
            words = shlex.split(part)
            options = {word.partition("=")[0] for word in words if word.startswith("-")}
            assert options <= _known_options(words), (line, options)
