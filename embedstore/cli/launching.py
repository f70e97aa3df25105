"""Options of ``embedstore build`` that give it to several workers, and the arguments that those get."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedstore.build.launchers import LaunchRequest

__all__ = ["launch_options", "launch_request", "worker_arguments"]

LAUNCHER_NAMES = ("local", "slurm", "ray")
# What is the launcher's own, or different for each worker.
_NOT_PASSED_ON = frozenset({"launcher", "n_launched", "sbatch", "shard", "dry_run", "as_json"})


def launch_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of launchers to a command."""
    for option in (
        click.option("--sbatch", multiple=True, help="Option of sbatch without dashes: gres=gpu:1; repeatable."),
        click.option("--jobs", "n_launched", type=click.IntRange(min=1), help="Workers of --launcher [default: 2]."),
        click.option("--launcher", type=click.Choice(LAUNCHER_NAMES), help="Give the build to several workers."),
    ):
        command = option(command)
    return command


def worker_arguments(ctx: click.Context) -> tuple[str, ...]:
    """Return the options that the user gave, as a worker gets them; the store by its full path.

    Parameters
    ----------
    ctx : click.Context
        Of the command, parsed.
    """
    arguments: list[str] = []
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if name in _NOT_PASSED_ON or not isinstance(parameter, click.Option) or name not in ctx.params:
            continue
        flag, value = max(parameter.opts, key=len), ctx.params[name]
        if name == "store_path":
            arguments += [flag, str(Path(value).absolute())]
        elif ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            if parameter.is_flag:
                arguments += [flag] if value else []
            else:
                # One word, so that a value that begins with a dash stays one.
                arguments += [f"{flag}={each}" for each in (value if parameter.multiple else [value])]
    return tuple(arguments)


def launch_request(ctx: click.Context) -> LaunchRequest | None:
    """Return what to give to workers, None where no launcher is asked for.

    Raises
    ------
    UsageError
        An option of launchers without ``--launcher``.
    """
    from embedstore.build.launchers import LaunchRequest

    launcher, n_workers, sbatch = (ctx.params[name] for name in ("launcher", "n_launched", "sbatch"))
    if launcher is None and n_workers is not None:
        raise click.UsageError("--jobs is for --launcher", ctx)
    if sbatch and launcher != "slurm":
        raise click.UsageError("--sbatch is for --launcher slurm", ctx)
    if launcher is None:
        return None
    return LaunchRequest(arguments=worker_arguments(ctx), n_workers=n_workers or 2, scheduler_options=sbatch)
