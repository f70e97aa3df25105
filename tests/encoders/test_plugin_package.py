"""An encoder of another package: the one of the documents, installed by pip, found, built with, and conforming."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_files import write_clip_folder

from embedstore.manifest import RecipeRequest, get_recipe
from embedstore.store import Store

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "tests" / "plugin_package"
CONFORMANCE = """
from pathlib import Path
from encoders.testing import EncoderConformance

class TestTinyEcho(EncoderConformance):
    reference = "tiny_echo:CARD"
    weights = Path(__file__).parent / "tiny_echo.pt"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package installed below ``site``, and a checkpoint for it."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(PACKAGE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--target", str(folder / "site"), str(folder / "source")]
    subprocess.run(command, check=True, capture_output=True)
    state = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 8, stride=8)).state_dict()
    torch.save(state, folder / "tiny_echo.pt")
    return folder


def run(home: Path, *arguments: str, code: int = 0) -> str:
    path = os.pathsep.join([str(home / "site"), os.environ["PYTHONPATH"]])
    environment = {**os.environ, "PYTHONPATH": path, "EMBEDSTORE_CACHE": str(home / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=home, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_documents_show_the_package_and_it_is_short() -> None:
    text = (ROOT / "docs" / "adding-an-encoder.md").read_text()
    shown = re.findall(r"```(?:toml|python)\n(.*?)```", text, flags=re.DOTALL)
    files = [(PACKAGE / name).read_text() for name in ("pyproject.toml", "tiny_echo.py")]
    assert shown[:2] == files
    assert sum(1 for file in files for line in file.splitlines() if line.strip()) <= 30


def test_it_is_found_by_its_entry_point_and_says_where_its_weights_are(home: Path) -> None:
    shown = json.loads(run(home, "embedstore", "encoders", "tiny-echo", "--json"))
    assert (shown["clip_dim"], shown["licence"], shown["weights_on_this_machine"]) == (32, "MIT", False)
    said = run(home, "embedstore", "build", "--encoder", "tiny-echo", "--manifest", "none", code=1)
    assert "fetch https://example.org/tiny_echo.pt" in said and "--weights tiny-echo=FILE" in said


def test_it_builds_a_set(home: Path) -> None:
    root = write_clip_folder(home, 2, clips_each=1)
    manifest = get_recipe("folder").make(RecipeRequest(root=root)).manifest
    Store.create(home / "store").add_manifest(manifest, root=root)
    run(home, "embedstore", "build", "--encoder", "tiny-echo", "--weights", "tiny-echo=tiny_echo.pt")
    built = Store.open(home / "store").get(dataset="clips", encoder="tiny-echo")
    assert built.frames is not None and built.frames.shape == (25, 32), "12 and 13 frames, sixteen or fewer of each"
    assert np.isfinite(built.clips[:]).all() and len(built) == 2
    assert built.provenance["licence"] == "MIT"


def test_it_passes_the_conformance_suite(home: Path) -> None:
    (home / "test_tiny_echo.py").write_text(CONFORMANCE)
    said = run(home, "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "test_tiny_echo.py")
    assert re.search(r"1\d passed", said), said
