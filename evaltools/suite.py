"""`Suite`: what `evaltools run` runs, and `Job`: one table of it, all encoders on one task, data set and protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embedstore import Store, __version__
from embedstore.errors import FormatError, UnknownNameError, did_you_mean
from embedstore.identity import digest_json
from embedstore.safe_yaml import read_yaml
from evaltools.head_tasks import head_task
from evaltools.heads import HEADS_PROTOCOL
from evaltools.knn import KnnOptions, knn_protocols
from evaltools.probe_options import Statistics
from evaltools.protocols import PROTOCOLS, get_protocol
from evaltools.resample import DEFAULT_DRAWS
from evaltools.selection import labelled_manifests
from evaltools.suite_banks import BankReads
from evaltools.task import Task, get_task, shipped_tasks
from evaltools.zeroshot_protocols import DEFAULT_PROTOCOL, ZERO_SHOT_PROTOCOLS, zero_shot_protocol

__all__ = ["Job", "RunOptions", "Suite", "get_suite", "plan_jobs", "shipped_suites"]

_FOLDER = Path(__file__).parent / "suites"
RESULT_SCHEMA = 1  # of the stored results: another number computes all again

Command = Literal["probe", "knn", "zeroshot", "heads"]


class SuiteEntry(BaseModel):
    """One command with its protocols; without protocols the task's primary one, or the command's own.

    Attributes
    ----------
    command : {"probe", "knn", "zeroshot", "heads"}
    protocols : tuple of str
        Those that do not measure a task's kind are left out for it.
    tasks, datasets : tuple of str
        In place of the suite's.
    pools : tuple of str
        Of ``probe`` and ``knn``.
    settings : tuple of str
        ``KEY=VALUE`` of the protocols.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: Command
    protocols: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    pools: tuple[str, ...] = ("clip",)
    settings: tuple[str, ...] = ()


class Suite(BaseModel):
    """What a suite file says.

    Attributes
    ----------
    name, summary, citation : str
    variant : str or None
        The variant of encoders that is wanted; results of others are stamped.
    statistics : {"patient", "cardiobench"}
    tasks, datasets, encoders : tuple of str
        All that the store allows without.
    entries : tuple of SuiteEntry
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    summary: str = ""
    citation: str = ""
    variant: str | None = None
    statistics: Statistics = "patient"
    tasks: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
    entries: tuple[SuiteEntry, ...] = Field(min_length=1)


@cache
def shipped_suites() -> dict[str, Suite]:
    """Return the suites that come with evaltools, by name.

    Examples
    --------
    >>> sorted(shipped_suites())
    ['all', 'cardiobench']
    """
    suites = [_read_suite(path) for path in sorted(_FOLDER.glob("*.yaml"))]
    return {suite.name: suite for suite in suites}


def _read_suite(path: Path) -> Suite:
    try:
        return Suite.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the suite"
        raise FormatError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from error


def get_suite(name: str | Path) -> Suite:
    """Return a shipped suite by name, or read a suite file (``*.yaml``).

    Raises
    ------
    UnknownNameError
        There is no such suite.
    FormatError
        A field is missing, unknown, or does not fit; the message names it.
    """
    if str(name) in shipped_suites():
        return shipped_suites()[str(name)]
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UnknownNameError(f"there is no suite file {str(name)!r}")
        return _read_suite(path)
    raise UnknownNameError(f"unknown suite {str(name)!r}{did_you_mean(str(name), list(shipped_suites()))}")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a user chooses about a run.

    Attributes
    ----------
    draws, seed : int
        Of the bootstrap.
    controls : bool
    n_shuffles : int or None
        The protocol's number without.
    allow_missing, allow_leakage : bool
    """

    draws: int = DEFAULT_DRAWS
    seed: int = 0
    controls: bool = True
    n_shuffles: int | None = None
    allow_missing: bool = False
    allow_leakage: bool = False


@dataclass(frozen=True, kw_only=True)
class Job:
    """Every encoder of one data set on one task by one protocol: they share their clips and controls.

    Attributes
    ----------
    command, task, dataset, protocol : str
        `task` is a name or a file.
    encoders : tuple of str
        Titles; all that the data set has without.
    pools, settings : tuple of str
    statistics : {"patient", "cardiobench"}
    options : RunOptions
    n_vectors : int
        Clips of the data set times encoders: how much work the job is.
    digest : str
        Of everything that decides the results: sets, labels, task, protocol, the banks that are read, options, this
        package's version.
    """

    command: Command
    task: str
    dataset: str
    protocol: str
    encoders: tuple[str, ...]
    pools: tuple[str, ...]
    settings: tuple[str, ...]
    statistics: Statistics
    options: RunOptions
    n_vectors: int
    digest: str

    @property
    def title(self) -> str:
        """For a person."""
        return f"{self.command} {self.protocol} of {self.task} on {self.dataset}"


def plan_jobs(
    store: Store,
    suite: Suite,
    *,
    tasks: Sequence[str] = (),
    datasets: Sequence[str] = (),
    encoders: Sequence[str] = (),
    options: RunOptions | None = None,
) -> list[Job]:
    """Return the jobs of a suite that a store has labels and vectors for, in the order of the suite.

    Parameters
    ----------
    tasks, datasets, encoders : sequence of str
        These only.

    Raises
    ------
    UnknownNameError
        A task, data set, encoder or protocol is not known, or nothing of the suite can be run.
    """
    chosen = options or RunOptions()
    sets = store.entries()
    _refuse_unknown(datasets, {entry.dataset for entry in sets})
    _refuse_unknown(encoders, {name for entry in sets for name in (entry.title, entry.encoder)})
    titles = tuple(dict.fromkeys(encoders or suite.encoders))
    banks = BankReads(store)
    jobs: list[Job] = []
    for entry in suite.entries:
        for task_name in tasks or entry.tasks or suite.tasks or tuple(shipped_tasks()):
            task = get_task(task_name)
            for manifest in labelled_manifests(store, task):
                wanted = datasets or entry.datasets or suite.datasets
                of_dataset = sorted({e.title: e.set_id for e in sets if e.dataset == manifest.name}.items())
                if not of_dataset or (wanted and manifest.name not in wanted):
                    continue
                named = [title for title, _ in of_dataset if not titles or _matches(title, titles)]
                asked = tuple(_of_variant(named, suite.variant))
                if entry.command == "heads":
                    asked = tuple(title for title in asked if head_task(title.split("@")[0], task.name))
                if not asked:
                    continue
                of_job = {title: set_id for title, set_id in of_dataset if title in asked}
                for name, digest in _protocols(entry, task):
                    key = {
                        "schema": RESULT_SCHEMA,
                        "version": __version__,
                        "command": entry.command,
                        "task": task.digest,
                        "dataset": manifest.name,
                        "annotations": manifest.annotations_digest,
                        "media": manifest.media_digest,
                        "protocol": [name, digest],
                        "sets": [list(one) for one in of_job.items()],
                        "pools": list(entry.pools),
                        "settings": list(entry.settings),
                        "statistics": suite.statistics,
                        "options": dict(vars(chosen)),
                        "banks": banks.of_job(entry.command, name, dataset=manifest.name, sets=of_job),
                    }
                    jobs.append(
                        Job(
                            command=entry.command,
                            task=str(task_name),
                            dataset=manifest.name,
                            protocol=name,
                            encoders=asked,
                            pools=entry.pools,
                            settings=entry.settings,
                            statistics=suite.statistics,
                            options=chosen,
                            n_vectors=len(manifest) * len(asked),
                            digest=digest_json(key),
                        )
                    )
    if not jobs:
        raise UnknownNameError(f"the store has no labels and vectors for anything in the suite {suite.name!r}")
    return list({job.digest: job for job in jobs}.values())


def _refuse_unknown(names: Sequence[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise UnknownNameError(f"the store has no vectors of {name!r}{did_you_mean(name, sorted(known))}")


def _of_variant(titles: Sequence[str], variant: str | None) -> list[str]:
    """Return, of each encoder that has the variant, that one; of others all that there are."""
    having = {title.split("@")[0] for title in titles if variant and title.endswith(f"@{variant}")}
    return [title for title in titles if title.split("@")[0] not in having or title.endswith(f"@{variant}")]


def _matches(title: str, wanted: Sequence[str]) -> bool:
    return title in wanted or title.split("@")[0] in wanted


def _protocols(entry: SuiteEntry, task: Task) -> list[tuple[str, str]]:
    """Return name and digest of the protocols of an entry that measure a task's kind."""
    if entry.command == "heads":
        return [(HEADS_PROTOCOL.name, HEADS_PROTOCOL.digest)]
    default = {"probe": task.protocol, "knn": "knn", "zeroshot": DEFAULT_PROTOCOL}[entry.command]
    found: list[tuple[str, str]] = []
    for name in entry.protocols or (default,):
        if entry.command == "zeroshot":
            plain = name.split("+")[0]
            known = ZERO_SHOT_PROTOCOLS.get(plain)
            if known is None or task.kind in known.kinds:
                found.append((name, zero_shot_protocol(name, task=task, changes=entry.settings).digest))
        elif entry.command == "knn":
            try:
                of = knn_protocols(name, kind=task.kind, options=KnnOptions(settings=entry.settings))
            except UnknownNameError:
                if name not in ("simpleshot",):
                    raise
                continue
            found.append((name, digest_json([one.digest for one in of])))
        elif name not in PROTOCOLS or task.kind in PROTOCOLS[name].kinds:
            found.append((name, get_protocol(name, kind=task.kind, settings=entry.settings).digest))
    return found
