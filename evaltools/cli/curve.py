"""``evaltools curve``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, say, store_option
from evaltools.cli.options import probe_options_of, scoring_options, selection_options


def _numbers(context: click.Context, parameter: click.Parameter, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no list of numbers such as 1,5,10") from error


def _whole_numbers(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    numbers = _numbers(context, parameter, text)
    if not all(number.is_integer() for number in numbers):
        raise click.BadParameter(f"{text!r} is no list of whole numbers such as 1,5,10")
    return tuple(map(int, numbers))


@click.command()
@store_option
@selection_options
@click.option(
    "--fractions",
    callback=_numbers,
    default="1,5,10,25,100",
    show_default=True,
    metavar="PERCENT,...",
    help="Shares of the training and validation patients.",
)
@click.option(
    "--shots",
    callback=_whole_numbers,
    default="",
    metavar="N,...",
    help="Points of so many patients a class too (for regression in all), as many again for validation; with "
    '--fractions "" these alone.',
)
@click.option("--repeats", type=click.IntRange(1, 1000), default=5, show_default=True, help="Draws of each point.")
@click.option(
    "--shuffles",
    type=click.IntRange(1, 100_000),
    default=20,
    show_default=True,
    help="Label permutations of the control at each point.",
)
@scoring_options
@json_option
@debug_option
def curve(store_path: Path, as_json: bool, **given: Any) -> None:
    """Score with growing parts of the training patients: how many labels an encoder needs.

    Example: evaltools curve --task lvef --fractions 1,5,25,100 --repeats 5 --out results
    """
    import embedstore
    from evaltools.curve import CurveOptions
    from evaltools.curve import curve as learning_curve
    from evaltools.report.curve import format_curve, write_curve
    from evaltools.selection import asked_tasks

    store = embedstore.open(store_path)
    options = CurveOptions(
        fractions=tuple(percent / 100 for percent in given["fractions"]),
        shots=given["shots"],
        repeats=given["repeats"],
        probe=replace(probe_options_of(given), n_shuffles=given["shuffles"]),
    )
    results = [
        result
        for task in asked_tasks(
            store, names=given["tasks"], labels=given["labels"], kind=given["kind"], datasets=given["datasets"]
        )
        for dataset in [*dict.fromkeys(given["datasets"])] or [None]
        for result in learning_curve(
            store,
            task=task,
            dataset=dataset,
            encoder=given["encoders"],
            options=options,
            on_skip=lambda reason: say(f"skipped: {reason}", err=True),
        )
    ]
    if given["out"] is not None:
        write_curve(results, given["out"])
    if as_json:
        emit_json({"results": [result.to_dict() for result in results]})
    else:
        say(format_curve(results))
