"""The contract of every command: exit codes, one-sentence errors, one JSON document.

Both programs, embedstore and evaltools, run through `run`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from embedstore.errors import EXIT_INTERRUPTED, EmbedstoreError, did_you_mean

__all__ = [
    "LazyGroup",
    "debug_option",
    "emit_json",
    "json_option",
    "printable",
    "refuse_idle",
    "run",
    "say",
    "store_option",
]

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Show a traceback on errors.")
store_option = click.option(
    "--store",
    "store_path",
    type=click.Path(path_type=Path),
    envvar="EMBEDSTORE",
    default=Path("store"),
    show_default="$EMBEDSTORE, else ./store",
    help="The store's folder.",
)


def printable(text: str) -> str:
    r"""Return ``text`` with control and direction-changing characters shown as ``\xNN``.

    Examples
    --------
    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """

    def shown(character: str) -> str:
        if character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
            return character
        code = ord(character)
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"

    return "".join(shown(character) for character in text)


def say(text: str, *, err: bool = False) -> None:
    """Print a line for a person, control characters made visible."""
    click.echo(printable(text), err=err)


def emit_json(document: Mapping[str, Any]) -> None:
    """Print the one JSON document of a command."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False))


def refuse_idle(reason: str, *names: str) -> None:
    """Refuse options of the running command that the user gave and that would do nothing.

    Parameters
    ----------
    reason : str
        What the sentence says after the option, e.g. ``is of --method cca, which is not asked for``.
    names : str
        Parameters of the command.

    Raises
    ------
    UsageError
        One of them was given; the message names the first.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in names and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{max(parameter.opts, key=len)} {reason}; leave it out", context)


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run: help answers at once.

    Parameters
    ----------
    lazy : mapping of str to (str, str)
        Command name to (``module:attribute``, one-sentence help).
    """

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return None
        module, _, attribute = self._lazy[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self._lazy and not args[0].startswith("-"):
            raise click.UsageError(f"unknown command {args[0]!r}{did_you_mean(args[0], list(self._lazy))}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self._lazy.items()])


def _fail(code: int, kind: str, message: str, *, as_json: bool) -> NoReturn:
    if as_json:
        emit_json({"error": {"code": code, "kind": kind, "message": printable(message)}})
    say(f"Error: {message}", err=True)
    sys.exit(code)


def _check_neighbours() -> None:
    """Refuse to run where another package called encoders or manifests hides ours."""
    from importlib.util import find_spec

    import embedstore

    home = Path(embedstore.__file__).parent.parent
    for name in ("encoders", "manifests"):
        found = find_spec(name)
        places = [] if found is None else [Path(place).parent for place in found.submodule_search_locations or ()]
        if home not in places:
            where = places[0] / name if places else "nowhere"
            raise EmbedstoreError(
                f"the package {name!r} that Python finds ({where}) is not the one beside embedstore ({home}); "
                "run from another folder, or rename yours"
            )


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def run(group: click.Group, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a program under the contract and exit; SIGTERM ends it as Ctrl-C does.

    Parameters
    ----------
    group : click.Group
    argv : sequence of str, optional
        Arguments; ``sys.argv[1:]`` without.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json, debug = "--json" in arguments, "--debug" in arguments
    try:
        _check_neighbours()
        signal.signal(signal.SIGTERM, _interrupt)
        outcome = group.main(args=arguments, standalone_mode=False, prog_name=group.name)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail(
            EXIT_INTERRUPTED, "interrupted", "interrupted; the same command goes on where it stopped", as_json=as_json
        )
    except click.ClickException as error:
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f" (see {error.ctx.command_path} --help)"
        else:
            hint = ""
        _fail(2, "usage", f"{error.format_message()}{hint}", as_json=as_json)
    except EmbedstoreError as error:
        if debug:
            raise
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        _fail(error.exit_code, error.kind, f"{error}{notes}", as_json=as_json)
    except BrokenPipeError:
        # The reader of our output went away: not an error of ours. Keep the interpreter from flushing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (OSError, MemoryError) as error:
        if debug:
            raise
        _fail(1, "environment", f"the machine failed: {error or type(error).__name__}", as_json=as_json)
    except Exception as error:
        if debug:
            raise
        what = f"{type(error).__name__}: {error}"
        _fail(1, "crash", f"unexpected failure ({what}); run again with --debug for a traceback", as_json=as_json)
    sys.exit(outcome if isinstance(outcome, int) else 0)
