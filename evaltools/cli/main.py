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
    "knn": ("evaltools.cli.knn:knn", "Score stored vectors by the nearest clips of other patients."),
    "zeroshot": ("evaltools.cli.unfitted:zeroshot", "Score stored vectors against stored text vectors."),
    "heads": ("evaltools.cli.unfitted:heads", "Score a model's own published task heads on stored vectors."),
    "retrieve": (
        "evaltools.cli.retrieve:retrieve",
        "Score what nearest clips have in common, or print them for one query.",
    ),
    "align": ("evaltools.cli.align:align", "Compare encoders pair by pair on the same clips: CKA, neighbours, CCA."),
    "curve": ("evaltools.cli.curve:curve", "Score with growing parts of the training patients."),
    "transfer": ("evaltools.cli.transfer:transfer", "Fit on one data set, test on another."),
    "compare": (
        "evaltools.cli.compare:compare",
        "Compare encoders on the same clips: difference, interval, p, ranks.",
    ),
    "run": ("evaltools.cli.run:run", "Run a suite over every encoder, task and protocol that the store allows."),
    "export": ("evaltools.cli.exchange:export", "Write predictions and ground truth as CardioBench's CSVs."),
    "import-predictions": (
        "evaltools.cli.exchange:import_predictions",
        "Score predictions that another program made, from CSVs.",
    ),
    "report": ("evaltools.cli.report:report", "Put results into the table of a paper: md, tex, csv or html."),
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
