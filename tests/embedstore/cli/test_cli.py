"""The commands as a user runs them: processes, exit codes, one JSON document, one sentence."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zarr
from clip_files import write_clip_folder

from embedstore.store import Store

PROGRAM = str(Path(sys.executable).parent / "embedstore")


def call(*arguments: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the program and check its exit code."""
    done = subprocess.run(
        [PROGRAM, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, f"exit {done.returncode}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def document(*arguments: str | Path, cwd: Path, code: int = 0) -> dict[str, object]:
    """Run with --json and parse the one document on stdout."""
    done = call(*arguments, "--json", cwd=cwd, code=code)
    parsed = json.loads(done.stdout)
    assert isinstance(parsed, dict)
    return parsed


def sentence(*arguments: str | Path, cwd: Path, code: int) -> str:
    """Run a command that must fail; return its one sentence."""
    done = call(*arguments, cwd=cwd, code=code)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    parsed = document(*arguments, cwd=cwd, code=code)
    assert parsed["error"]["code"] == code  # type: ignore[index]
    return line.removeprefix("Error: ")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips, their table and a manifest that is added to ./store."""
    folder = tmp_path_factory.mktemp("template")
    write_clip_folder(folder, 6)
    call("manifest", "make", "folder", "--root", "clips", "--table", "clips.csv", "-o", "m.parquet", cwd=folder)
    call("manifest", "add", "m.parquet", cwd=folder)
    return folder


@pytest.fixture
def home(tmp_path: Path, template: Path) -> Path:
    """A copy of the template that a test may change."""
    folder = tmp_path / "home"
    shutil.copytree(template, folder)
    Store.open(folder / "store").remember_root("clips", folder / "clips")
    return folder


def test_from_clips_to_vectors(home: Path) -> None:
    built = document("build", "--encoder", "pixel-stats", "--encoder", "stub-clip", cwd=home)
    assert [(s["dataset"], s["encoder"], s["clips_ok"], s["clips_failed"]) for s in built["sets"]] == [  # type: ignore[index, attr-defined]
        ("clips", "pixel-stats", 12, 0),
        ("clips", "stub-clip", 12, 0),
    ]
    keys = {"dataset", "encoder", "set", "clips_expected", "clips_ok", "clips_failed", "clips_reused", "frames"}
    assert keys | {"dim", "frame_dim", "seconds"} <= set(built["sets"][0])  # type: ignore[index]
    listed = document("ls", cwd=home)["sets"]
    keys = {"dataset", "encoder", "variant", "set", "fingerprint", "clips", "frames", "dim", "frame_dim", "dtype"}
    assert keys | {"bytes", "failed"} <= set(listed[0])  # type: ignore[index]
    set_id = listed[0]["set"]  # type: ignore[index]
    array = zarr.open_array(str(home / "store" / "sets" / set_id / "clips"), mode="r")
    assert array.shape == (12, 96)
    again = call("build", "--encoder", "pixel-stats", cwd=home)
    assert "nothing to do" in again.stdout and again.stderr == ""
    verified = document("verify", cwd=home)
    assert verified["ok"] is True and verified["level"] == "full" and verified["problems"] == []
    assert document("verify", "--quick", cwd=home)["level"] == "quick"
    shown = document("show", "clips/pixel-stats", cwd=home)
    assert shown["set"] == set_id and shown["provenance"]["batch_size"] == 16  # type: ignore[index]
    assert document("show", set_id[:8], cwd=home)["set"] == set_id
    assert len(document("manifest", "ls", cwd=home)["manifests"]) == 1  # type: ignore[arg-type]


def test_verify_names_file_and_rows(home: Path) -> None:
    call("build", "--encoder", "pixel-stats", cwd=home)
    (shard,) = (home / "store").glob("sets/*/clips/c/0/0")
    payload = bytearray(shard.read_bytes())
    payload[700] ^= 4
    shard.write_bytes(bytes(payload))
    found = document("verify", cwd=home, code=4)
    (problem,) = found["problems"]  # type: ignore[misc]
    assert found["ok"] is False
    assert (problem["kind"], problem["rows"]) == ("altered", [0, 12])  # type: ignore[index]
    assert document("verify", "--quick", cwd=home)["ok"] is True
    shard.write_bytes(bytes(payload[:-9]))
    assert document("verify", "--quick", cwd=home, code=4)["problems"][0]["kind"] == "truncated"  # type: ignore[index]
    assert "nothing was repaired" in call("verify", cwd=home, code=4).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("build", "--encoder", "pixelstats"), 2, "did you mean 'pixel-stats'"),
        (("build", "--encoder", "pixel-stats", "--manifest", "clip"), 2, "did you mean 'clips'"),
        (("build", "--encoder", "pixel-stats", "--sampling", "every:2"), 2, "rules: uniform:N"),
        (("build", "--encoder", "pixel-stats", "--shard", "3/3"), 2, "0 <= I < N"),
        (("build", "--encoder", "pixel-stats", "--shard", "auto"), 2, "SLURM_ARRAY_TASK_ID"),
        (("build", "--encoder", "pixel-stats", "--weights", "pixel-stats"), 2, "NAME=PATH"),
        (("build",), 2, "--encoder"),
        (("bild",), 2, "did you mean 'build'"),
        (("ls", "--store", "nowhere"), 2, "no store at nowhere"),
        (("ls", "--store", "m.parquet"), 2, "is a file"),
        (("build", "--encoder", "pixel-stats", "--store", "m.parquet"), 2, "is a file"),
        (("build", "--encoder", "pixel-stats", "--store", "clips"), 2, "holds other things"),
        # Commands that make a store that is not there leave none behind when they refuse.
        (("build", "--encoder", "pixel-stats", "--store", "new"), 2, "has no manifest"),
        (("ingest", "clips.csv", "--manifest", "m.parquet", "--encoder", "x", "--store", "new"), 4, "of no format"),
        (("manifest", "check", "clips.csv"), 4, "is no manifest"),
        (("manifest", "check", "nothing.parquet"), 1, "not there"),
        (("manifest", "make", "foldr", "-o", "x.parquet"), 2, "did you mean 'folder'"),
        (("encoders", "pixelstats"), 2, "did you mean 'pixel-stats'"),
        (("show", "clips/none"), 2, "no set of data set"),
    ],
)
def test_bad_arguments_get_one_sentence(template: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    before = sorted(path for path in template.rglob("*"))
    assert message in sentence(*arguments, cwd=template, code=code)
    assert sorted(path for path in template.rglob("*")) == before


def test_failures_are_exit_three(home: Path) -> None:
    (home / "clips/p01-c0.avi").write_bytes(b"")
    done = call("build", "--encoder", "pixel-stats", cwd=home, code=3)
    assert "p01-c0: source-changed" in done.stdout
    call("build", "--encoder", "pixel-stats", "--dtype", "float32", "--on-error", "stop", cwd=home, code=1)
    built = document("build", "--encoder", "pixel-stats", cwd=home, code=3)
    assert built["sets"][0]["failure_reasons"] == {"source-changed": 1}  # type: ignore[index]


def test_nothing_decodable_is_exit_one(home: Path) -> None:
    (home / "empty").mkdir()
    assert "--root" in sentence("build", "--encoder", "pixel-stats", "--root", "empty", cwd=home, code=1)


@pytest.mark.parametrize("label", ["n/a", "inf", "-Infinity", "12,5", "nan"])
def test_labels_that_are_no_numbers(home: Path, label: str) -> None:
    text = (home / "clips.csv").read_text().replace("p02-c0,p02,test,36", f'p02-c0,p02,test,"{label}"')
    (home / "bad.csv").write_text(text)
    made = call(
        "manifest", "make", "folder", "--root", "clips", "--table", "bad.csv", "-o", "bad.parquet", cwd=home, code=4
    )
    assert "p02-c0" in made.stderr
    for command in ("check", "add"):
        assert "p02-c0" in sentence("manifest", command, "bad.parquet", cwd=home, code=4)


def test_an_empty_label_is_unlabelled(home: Path) -> None:
    text = (home / "clips.csv").read_text().replace("p02-c0,p02,test,36", "p02-c0,p02,test,")
    (home / "gap.csv").write_text(text)
    call("manifest", "make", "folder", "--root", "clips", "--table", "gap.csv", "-o", "gap.parquet", cwd=home)
    assert document("manifest", "check", "gap.parquet", cwd=home)["labels"] == {"lvef_pct": 11}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("p02-c0,p02,test", "p02-c0,p02,train", "p02 (test, train)"),
        ("p02-c0,", "p02-c1,", "p02-c1"),
        ("p02-c0,p02,test", "p02-c0,p02,fold7", "fold7"),
    ],
)
def test_rules_of_a_manifest(home: Path, old: str, new: str, message: str) -> None:
    (home / "bad.csv").write_text((home / "clips.csv").read_text().replace(old, new))
    done = subprocess.run(
        [PROGRAM, "manifest", "make", "folder", "--table", "bad.csv", "-o", "bad.parquet"],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4 and message in done.stderr
    if (home / "bad.parquet").exists():
        for command in ("check", "add"):
            assert message in sentence("manifest", command, "bad.parquet", cwd=home, code=4)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_is_130_and_resumes(home: Path, how: signal.Signals) -> None:
    """Interrupt a build that decodes slowly; the same command then completes it."""
    for attempt in range(5):  # on a busy machine the build may end before this process sees that it has begun
        place = home / f"attempt{attempt}"
        shutil.copytree(home, place, ignore=shutil.ignore_patterns("attempt*"))
        process = subprocess.Popen(
            [PROGRAM, "build", "--encoder", "pixel-stats", "--sampling", "all", "--workers", "1"],
            cwd=place,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        deadline = time.monotonic() + 60
        while not list((place / "store/builds").glob("*/plan.json")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
        if process.returncode:
            break
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    home = place
    built = document("build", "--encoder", "pixel-stats", "--sampling", "all", cwd=home)
    assert built["sets"][0]["clips_ok"] == 12  # type: ignore[index]
    assert document("verify", cwd=home)["ok"] is True


def test_a_store_that_cannot_be_written(home: Path) -> None:
    """A full disk, seen through a file size limit: one sentence, and the same command works afterwards."""
    limited = (
        "import os, resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); os.execv({PROGRAM!r}, sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, PROGRAM, "build", "--encoder", "pixel-stats", "--workers", "0"],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "size limit" in done.stderr and "store/builds" in done.stderr and "Traceback" not in done.stderr
    assert document("build", "--encoder", "pixel-stats", cwd=home)["sets"][0]["clips_ok"] == 12  # type: ignore[index]


def test_control_characters_never_reach_the_terminal(home: Path) -> None:
    done = subprocess.run(
        [PROGRAM, "show", "\x1b]52;c;x\x07\u202e"], cwd=home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout + done.stderr)


@pytest.mark.parametrize("name", ["encoders", "manifests"])
def test_a_folder_that_shadows_a_package_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "embedstore", "encoders"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and f"the package {name!r}" in done.stderr


def test_every_command_has_help_with_an_example() -> None:
    from embedstore.cli.main import program

    context = program.make_context("embedstore", ["--help"], resilient_parsing=True)
    for name in program.list_commands(context):
        command = program.get_command(context, name)
        assert command is not None and command.help and "Example: embedstore" in command.help, name
