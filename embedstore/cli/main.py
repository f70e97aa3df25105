"""The ``embedstore`` program: a table of lazily imported commands."""

from __future__ import annotations

from typing import NoReturn

import click

from embedstore import __version__
from embedstore.cli.contract import LazyGroup, run

_COMMANDS = {
    "phantom": ("embedstore.cli.phantom:phantom", "Write a folder of synthetic beating hearts."),
    "manifest": ("embedstore.cli.manifest:manifest", "Make, check, add and list manifests of clips."),
    "build": ("embedstore.cli.build:build", "Decode and encode the clips of manifests into the store."),
    "ingest": ("embedstore.cli.ingest:ingest", "Bring your own vectors: .npz, .npy, Parquet, HDF5, CardioBench."),
    "encoders": ("embedstore.cli.encoders:encoders", "List the encoders, or show one encoder's card."),
    "prompts": ("embedstore.cli.prompts:prompts", "Embed banks of prompts, and list them."),
    "doctor": ("embedstore.cli.doctor:doctor", "Check what builds need on this machine."),
    "ls": ("embedstore.cli.read:ls", "List the sets of the store."),
    "show": ("embedstore.cli.read:show", "Show one set: spec, arrays, failures, provenance."),
    "status": ("embedstore.cli.upkeep:status", "Show what is done, failed and missing, and builds under way."),
    "commit": ("embedstore.cli.upkeep:commit", "Complete builds whose units are all done."),
    "log": ("embedstore.cli.history:log", "List the commits with their snapshots and tags."),
    "tag": ("embedstore.cli.history:tag", "Name a snapshot for ever."),
    "verify": ("embedstore.cli.read:verify", "Check that the store holds what was written."),
    "gc": ("embedstore.cli.upkeep:gc", "Remove what nothing needs any more."),
    "forget-patient": ("embedstore.cli.upkeep:forget_patient", "Remove a patient's vectors and rows for ever."),
    "snapshot": ("embedstore.cli.snapshot:snapshot", "Create, send, receive, check and compare snapshots."),
}


@click.group(
    name="embedstore",
    cls=LazyGroup,
    lazy=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="embedstore")
def program() -> None:
    """Embed echocardiography once with every foundation model, evaluate for ever on a CPU.

    Example: embedstore build --encoder efficientnet-lite0
    """


def main() -> NoReturn:
    """Run the program."""
    run(program)
