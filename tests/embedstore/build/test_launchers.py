"""Launchers: workers of this machine, a Slurm array through a stand-in for sbatch, Ray through a stand-in for ray."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from clip_files import write_clip_folder

from embedstore.build.launchers import LaunchRequest, WorkerEnd, array_script
from embedstore.build.launchers.local import run_local, visible_gpus
from embedstore.build.launchers.ray_tasks import run_ray
from embedstore.errors import EnvironmentFailure, MissingExtraError, UnknownNameError
from embedstore.snapshot.verify import verify_store
from embedstore.store import Store

PROGRAM = [sys.executable, "-P", "-m", "embedstore"]
ARGUMENTS = ("--encoder", "stub", "--encoder", "stub-clip")
# Units of two clips, in every process that a test starts: a module that Python imports by itself.
SMALL_UNITS = "import embedstore.build.plan; embedstore.build.plan.UNIT_CLIPS = 2"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with clips and a manifest, and the snapshot id that one process gives."""
    folder = tmp_path_factory.mktemp("launchers")
    write_clip_folder(folder, 5)
    for arguments in (
        ("manifest", "make", "folder", "--root", "clips", "--table", "clips.csv", "-o", "m.parquet"),
        ("manifest", "add", "m.parquet", "--root", "clips", "--store", "alone"),
        ("build", *ARGUMENTS, "--store", "alone"),
    ):
        subprocess.run([*PROGRAM, *arguments], cwd=folder, check=True, capture_output=True)
    return folder, Store.open(folder / "alone").snapshot().id


@pytest.fixture
def home(template: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Store]:
    """The folder, with an empty store of its own beside."""
    (tmp_path / "sitecustomize.py").write_text(SMALL_UNITS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    monkeypatch.chdir(template[0])
    store = Store.create(tmp_path / "store")
    manifest = Store.open(template[0] / "alone").manifest("clips")
    store.add_manifest(manifest, root=template[0] / "clips")
    return template[0], store


def build(store: Store, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*PROGRAM, "build", *ARGUMENTS, "--store", str(store.layout.root), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_local_workers_end_in_the_snapshot_of_one_process(
    template: tuple[Path, str], home: tuple[Path, Store]
) -> None:
    _, store = home
    sets = json.loads(build(store, "--launcher", "local", "--workers", "0", "--json").stdout)["sets"]
    assert [(found["encoder"], found["clips_ok"], found["clips_reused"]) for found in sets] == [
        ("stub", 10, 0),
        ("stub-clip", 10, 0),
    ]
    assert store.snapshot().id == template[1] and verify_store(store, quick=False).ok
    again = build(store, "--launcher", "local")  # nothing to do starts nobody
    assert again.stdout.count("nothing to do") == 2 and "[0/2]" not in again.stderr
    assert [entry.reason for entry in store.log()].count("build stub on clips") == 1


def test_a_wrong_name_is_refused_before_anything_starts(home: tuple[Path, Store]) -> None:
    _, store = home
    done = build(store, "--launcher", "local", "--encoder", "panehco", "--json", code=2)
    assert json.loads(done.stdout)["error"]["kind"] == "unknown"
    assert not list(store.layout.builds.glob("*/"))
    for arguments in (("--jobs", "2"), ("--sbatch", "x=1"), ("--launcher", "local", "--shard", "0/2")):
        assert "Error: " in build(store, *arguments, code=2).stderr


def test_a_worker_that_is_killed(template: tuple[Path, str], home: tuple[Path, Store], tmp_path: Path) -> None:
    _, store = home
    victim = f"import os, signal, sys\nif '0/2' in sys.argv: os.kill(os.getpid(), signal.SIGKILL)\n{SMALL_UNITS}"
    (tmp_path / "sitecustomize.py").write_text(victim.replace("sys.argv", "sys.orig_argv"))
    message = build(store, "--launcher", "local", code=1).stderr
    assert "worker 0/2 failed: it was ended by SIGKILL" in message and "run the same command again" in message
    (tmp_path / "sitecustomize.py").write_text(SMALL_UNITS)
    build(store, "--launcher", "local")
    assert store.snapshot().id == template[1]


def test_workers_end_with_the_launcher(home: tuple[Path, Store], tmp_path: Path) -> None:
    """SIGTERM: the launcher ends its workers, says how to go on, and leaves nobody behind."""
    _, store = home
    slow = f"{SMALL_UNITS}\nimport os, sys, time\n" + textwrap.dedent(
        f"""
        if "--shard" in sys.orig_argv:
            open({str(tmp_path)!r} + "/pid-" + str(os.getpid()), "w").close()
            time.sleep(100)
        """
    )
    (tmp_path / "sitecustomize.py").write_text(slow)
    process = subprocess.Popen(
        [*PROGRAM, "build", *ARGUMENTS, "--store", str(store.layout.root), "--launcher", "local"],
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while len(started := list(tmp_path.glob("pid-*"))) < 2:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in said
    for path in started:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name.removeprefix("pid-")), 0)


SBATCH = """#!{python}
import os, re, subprocess, sys
script = sys.stdin.read()
assert sys.argv[1:] == ["--parsable"]
open(os.environ["JOB"], "w").write(script)
if "partition=closed" in script:
    sys.exit("sbatch: error: invalid partition\\nspecified: closed")
first, last = map(int, re.search(r"--array=(\\d+)-(\\d+)", script).groups())
folder = re.search(r"--chdir=(.+)", script)[1]
for task in reversed(range(first, last + 1)):
    array = dict(ID=task, MIN=first, MAX=last, COUNT=last - first + 1, STEP=1)
    environment = {{**os.environ, **{{f"SLURM_ARRAY_TASK_{{k}}": str(v) for k, v in array.items()}}}}
    subprocess.run(["bash", "-s"], input=script, text=True, env=environment, cwd=folder, check=True, stdout=2)
print("4711;cluster")
"""


def test_a_slurm_array(
    template: tuple[Path, str], home: tuple[Path, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, store = home
    arguments = ("--launcher", "slurm", "--jobs", "2", "--sbatch", "gres=gpu:1", "--workers", "0")
    assert "needs the command sbatch" in build(store, *arguments, code=1).stderr
    script = build(store, *arguments, "--dry-run").stdout
    assert script.splitlines()[:5] == [
        "#!/bin/bash",
        "#SBATCH --array=0-1",
        f"#SBATCH --chdir={folder}",
        "#SBATCH --job-name=embedstore-build",
        "#SBATCH --gres=gpu:1",
    ]
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(SBATCH.format(python=sys.executable))
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(sbatch.parent), os.environ["PATH"]]))
    monkeypatch.setenv("JOB", str(tmp_path / "job"))
    refused = build(store, *arguments, "--sbatch", "partition=closed", code=1).stderr
    assert "sbatch refused the job: sbatch: error: invalid partition specified: closed" in refused
    done = build(store, *arguments, "--json")
    assert "Slurm job 4711: 2 tasks" in done.stderr
    assert [found["set"] for found in json.loads(done.stdout)["sets"]] == [None, None]
    assert (tmp_path / "job").read_text() == script
    assert store.snapshot().id == template[1]
    assert subprocess.run([*PROGRAM, "commit", "--store", str(store.layout.root)], check=True).returncode == 0


@pytest.mark.parametrize("option", ["array=0-9", "--chdir=/", "gres=gpu\n#SBATCH --x", "", "="])
def test_options_that_no_script_takes(option: str) -> None:
    with pytest.raises(UnknownNameError, match="--sbatch takes one option"):
        array_script(LaunchRequest(arguments=(), n_workers=2, scheduler_options=(option,)), folder=Path("/work"))


def test_arguments_stay_single_words() -> None:
    odd = "--where=view == 'A4C'; rm -rf $HOME"
    script = array_script(LaunchRequest(arguments=(odd,), n_workers=2), folder=Path("/a b"))
    *_, command = script.splitlines()
    assert odd in shlex.split(command) and '#SBATCH --chdir="/a b"' in script


def test_gpus_are_given_in_turn(tmp_path: Path) -> None:
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / bus).mkdir()
    assert visible_gpus({}, tmp_path) == ["0", "1"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []
    assert visible_gpus({}, tmp_path / "none") == []


def test_a_worker_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(EnvironmentFailure, match="cannot start a worker"):
        run_local(LaunchRequest(arguments=(), n_workers=2), note=print)


def test_ray(home: tuple[Path, Store], template: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the calls of Ray's API that are used; its tasks run one after the other."""
    _, store = home
    ray = ModuleType("ray")
    said: list[str] = []
    up = [False]
    ray.exceptions = SimpleNamespace(RayError=type("RayError", (Exception,), {}))  # type: ignore[attr-defined]
    ray.is_initialized = lambda: up[0]  # type: ignore[attr-defined]
    ray.init = lambda **_: up.append(up.pop() or True)  # type: ignore[attr-defined]
    ray.shutdown = lambda: up.append(up.pop() and False)  # type: ignore[attr-defined]
    ray.cluster_resources = lambda: {"CPU": 2.0}  # type: ignore[attr-defined]
    ray.remote = lambda **_: lambda function: SimpleNamespace(remote=function)  # type: ignore[attr-defined]
    ray.get = list  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    request = LaunchRequest(arguments=(*ARGUMENTS, "--store", str(store.layout.root)), n_workers=2)
    assert run_ray(request, note=said.append) == [WorkerEnd(worker=0, code=0), WorkerEnd(worker=1, code=0)]
    assert store.snapshot().id == template[1] and not up[0]
    wrong = LaunchRequest(arguments=("--encoder", "nobody", "--store", str(store.layout.root)), n_workers=1)
    (end,) = run_ray(wrong, note=said.append)
    assert end.code == 2 and "nobody" in end.message and "[0/1] Error: " in said[0]


def test_without_ray_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match="pip install ray"):
        run_ray(LaunchRequest(arguments=(), n_workers=2), note=print)
