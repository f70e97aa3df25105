"""The installed wheel, from an empty folder: every package, every YAML file, both programs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("embedstore", "encoders", "evaltools", "manifests")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's contents and metadata, as pip lays them out."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(
        [
            "git",
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            *PACKAGES,
            "setup.cfg",
            "pyproject.toml",
            "README.md",
            "LICENSE",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in listed:
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
    ]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def run(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=True
    )


def test_every_module_and_yaml_file_is_in_the_wheel(installed: Path) -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.suffix in (".py", ".yaml", ".typed") and "__pycache__" not in path.parts:
                assert (installed / path.relative_to(ROOT)).exists(), path


def test_the_programs_run_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    where = "import embedstore, encoders, evaltools, manifests; print(embedstore.__file__, manifests.__path__[0])"
    assert run(installed, tmp_path, "-c", where).stdout.count(str(installed)) == 2
    assert "efficientnet-lite0" in run(installed, tmp_path, "-m", "embedstore", "encoders").stdout
    run(installed, tmp_path, "-m", "embedstore", "phantom", "--out", "ph", "--patients", "3")
    run(installed, tmp_path, "-m", "embedstore", "manifest", "make", "phantom", "--root", "ph", "-o", "m.parquet")
    run(installed, tmp_path, "-m", "embedstore", "manifest", "add", "m.parquet")
    run(installed, tmp_path, "-m", "embedstore", "build", "--encoder", "pixel-stats")
    assert "lvef" in run(installed, tmp_path, "-m", "evaltools", "tasks").stdout
