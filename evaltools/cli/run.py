"""``evaltools run``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embedstore.cli.contract import debug_option, emit_json, json_option, refuse_idle, say, store_option

_EXIT_INCOMPLETE = 3


@click.command()
@store_option
@click.option(
    "--suite",
    default="all",
    show_default=True,
    metavar="NAME|FILE.yaml",
    help="What to run: all that the store allows, cardiobench, or a file.",
)
@click.option("--task", "tasks", multiple=True, metavar="NAME|FILE.yaml", help="These tasks only, repeatable.")
@click.option("--dataset", "datasets", multiple=True, metavar="NAME", help="These data sets only, repeatable.")
@click.option(
    "--encoder", "encoders", multiple=True, metavar="NAME[@VARIANT]", help="These encoders only, repeatable."
)
@click.option("--jobs", "workers", type=click.IntRange(1, 512), help="Processes.  [default: one a core]")
@click.option("--controls/--no-controls", default=True, show_default=True, help="Run the controls of each result.")
@click.option(
    "--n-shuffles",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="Label permutations of the shuffled control; the protocol's number without.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of draws and permutations.")
@click.option(
    "--bootstrap",
    "draws",
    type=click.IntRange(0, 1_000_000),
    default=2000,
    show_default=True,
    help="Patient bootstrap draws; 0 for no intervals.",
)
@click.option("--allow-missing", is_flag=True, help="Score the clips that have vectors.")
@click.option("--allow-leakage", is_flag=True, help="Go on with a patient in two splits, and mark the result.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("results"),
    show_default=True,
    metavar="DIR",
    help="Where results and predictions are kept.",
)
@json_option
@debug_option
def run(store_path: Path, as_json: bool, **given: Any) -> None:
    """Run a whole suite; what an earlier run in the same folder computed of the same digests is used again.

    Example: evaltools run --suite cardiobench --out results
    """  # fmt: skip
    import embedstore
    from evaltools.run import run as run_suite
    from evaltools.suite import Job, RunOptions, get_suite, plan_jobs

    if not given["controls"]:
        refuse_idle("is of a control, and --no-controls runs none", "n_shuffles")
    store, suite = embedstore.open(store_path), get_suite(given["suite"])
    names = ("draws", "seed", "controls", "n_shuffles", "allow_missing", "allow_leakage")
    jobs = plan_jobs(
        store,
        suite,
        tasks=given["tasks"],
        datasets=given["datasets"],
        encoders=given["encoders"],
        options=RunOptions(**{name: given[name] for name in names}),
    )
    n_done = 0

    def report(job: Job, reused: bool) -> None:
        nonlocal n_done
        n_done += 1
        say(f"{n_done}/{len(jobs)} {job.title}{' (kept)' if reused else ''}", err=True)

    done = run_suite(store, suite, out=given["out"], jobs=jobs, workers=given["workers"], on_done=report)
    if as_json:
        emit_json({**done.to_dict(), "out": str(given["out"])})
    else:
        for reason in dict.fromkeys(skipped["reason"] for skipped in done.skipped):
            of = [f"{one['task']} on {one['dataset']}" for one in done.skipped if one["reason"] == reason]
            more = f" and {len(set(of)) - 1} more" if len(set(of)) > 1 else ""
            say(f"skipped {of[0]}{more}: {reason}")
        say(
            f"{len(done.results)} results of {done.n_computed} jobs computed and {done.n_reused} kept, "
            f"{len(done.skipped)} skipped, in {done.seconds:.1f} s: {given['out'] / 'results.parquet'}"
        )
        say(f"for a table: evaltools report {given['out']}")
    if not done.results:
        click.get_current_context().exit(_EXIT_INCOMPLETE)
