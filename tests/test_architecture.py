"""The arrows of the house, held by walking the syntax trees; and what importing pulls in."""

from __future__ import annotations

import ast
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A module may import its own layer and those below it.
LAYERS = [
    {
        "abreast",
        "errors",
        "identity",
        "layout",
        "disk",
        "files",
        "folders",
        "given_paths",
        "json_files",
        "scratch",
        "stream_digest",
        "locks",
    },
    {"safe_yaml", "dataset", "spec", "encoder", "media", "where", "prompts", "weights_cache"},
    {"manifest"},
    {"shards", "vector_array", "tables", "described_folder"},
    {"embedding_set", "views", "bank"},
    {"history", "commit_log", "store"},
    {"snapshot", "build", "ingest", "phantom", "upkeep", "doctor"},
    {"cli", "__main__"},
]
TORCH_SIDE = {"torch", "torchvision", "open_clip", "transformers", "timm", "efficientnet_lite_pytorch"}


def imported_modules(path: Path) -> set[str]:
    """Full names of everything a file imports, at any depth of nesting."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def layer_of(module: str) -> int:
    (found,) = [level for level, names in enumerate(LAYERS) if module in names]
    return found


@pytest.mark.parametrize("path", files_of("embedstore"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_embedstore_imports_downwards(path: Path) -> None:
    own = path.relative_to(ROOT / "embedstore").parts[0].removesuffix(".py")
    for name in imported_modules(path):
        top, _, rest = name.partition(".")
        assert top not in {"evaltools", "encoders", "manifests"} | TORCH_SIDE, f"imports {name}"
        # The top-level module re-exports lazily, and type-only imports upwards are the writers' parameters.
        if top != "embedstore" or own == "__init__" or rest in ("", "__version__"):
            continue
        if (own, rest) == ("shards", "vector_array.VectorArray"):
            continue
        assert layer_of(rest.split(".")[0]) <= layer_of(own), f"imports {name} from a room above"


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("encoders", {"spec", "encoder", "errors"}),
        ("manifests", {"manifest", "errors", "media"}),
    ],
)
def test_plug_in_packages_use_the_public_rooms(package: str, allowed: set[str]) -> None:
    for path in files_of(package):
        for name in imported_modules(path):
            top, _, rest = name.partition(".")
            assert top != "evaltools", f"{path}: {name}"
            if top == "embedstore":
                assert rest.split(".")[0] in allowed, f"{path}: {name}"


def test_evaltools_never_imports_torch_or_encoders() -> None:
    for path in files_of("evaltools"):
        tops = {name.partition(".")[0] for name in imported_modules(path)}
        assert not tops & (TORCH_SIDE | {"encoders", "manifests"}), path


def test_no_pickle_and_no_eval() -> None:
    for package in ("embedstore", "evaltools", "manifests"):
        for path in files_of(package):
            if path.parent == ROOT / "embedstore/media" and path.stem in ("pool", "child", "worker"):
                # Between this process and its own workers, never from a file.
                continue
            names = imported_modules(path)
            assert not any(name.partition(".")[0] in {"pickle", "shelve", "marshal", "joblib"} for name in names), (
                path
            )


def test_one_module_unpickles_by_an_allow_list_and_no_other() -> None:
    loaders = {"load", "loads", "Unpickler", "_Unpickler"}
    for path in files_of("encoders"):
        used = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle"
        }
        assert not used & loaders or (path.name, used & loaders) == ("unpickle_child.py", {"Unpickler"}), path
        assert not {"pickle.load", "pickle.loads", "pickle.Unpickler"} & imported_modules(path), path
        assert not any(name.partition(".")[0] in {"dill", "cloudpickle", "joblib"} for name in imported_modules(path))


_PROBE = """
import sys
{statement}
heavy = {{"torch", "torchvision", "transformers", "open_clip", "timm", "cv2", "av", "matplotlib", "sklearn"}}
print(sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "statement",
    [
        "import embedstore, embedstore.store, embedstore.manifest, embedstore.embedding_set",
        "import embedstore.cli.main, evaltools.cli.main",
        "import evaltools.probe",
        "from embedstore.encoder import encoder_cards; encoder_cards()",
        "from embedstore.manifest import recipes; recipes()",
        "import embedstore.build.plan",
    ],
)
def test_imports_stay_light(statement: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE.format(statement=statement)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("program", ["embedstore", "evaltools"])
def test_help_answers_at_once(program: str) -> None:
    """Under half a second of processor time, whatever else the machine does."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([str(Path(sys.executable).parent / program), "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_no_folder_of_ours_is_left_out_by_pytest(pytestconfig: pytest.Config) -> None:
    patterns = pytestconfig.getini("norecursedirs")
    tops = ("embedstore", "evaltools", "encoders", "tests")
    folders = {
        part for top in tops for path in (ROOT / top).rglob("*.py") for part in path.relative_to(ROOT).parts[:-1]
    }
    assert "build" in folders
    assert [name for name in sorted(folders) if any(fnmatch(name, pattern) for pattern in patterns)] == []
