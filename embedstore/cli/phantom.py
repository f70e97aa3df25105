"""``embedstore phantom``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, say


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write; made where absent.")
@click.option("--patients", "n_patients", type=click.IntRange(min=1), default=150, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
@debug_option
def phantom(out: Path, n_patients: int, seed: int, as_json: bool) -> None:
    """Write a folder of synthetic beating hearts with exact ground truth; the same seed gives the same bytes.

    Example: embedstore phantom --out phantom --patients 150 --seed 0
    """
    from tqdm import tqdm

    from embedstore.phantom import write_phantom

    with tqdm(desc="phantom", unit="patient", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        summary = write_phantom(out, n_patients=n_patients, seed=seed, progress=progress)
    if as_json:
        emit_json({"out": str(out), "patients": summary.n_patients, "clips": summary.n_clips, "seed": seed})
    else:
        say(f"{summary.n_clips} synthetic clips of {summary.n_patients} patients in {out}")
