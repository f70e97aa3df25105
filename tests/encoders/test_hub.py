"""The hub's cache, looked into and filled; no test reaches for the network."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from embedstore.encoder import encoder_cards
from embedstore.errors import CorruptionError, EnvironmentFailure, PolicyError, UnknownNameError
from encoders import hub
from encoders.clip_family import ECHO_CLIP_CARD
from encoders.siglip import MEDSIGLIP_CARD, SIGLIP2_CARD

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    return folder


def put(cache: Path, repository: str, files: dict[str, bytes], *, damage: str | None = None) -> Path:
    """Lay files into the cache as huggingface_hub does: blobs named by digest, links in a snapshot, a reference."""
    base = cache / f"models--{repository.replace('/', '--')}"
    snapshot = base / "snapshots" / COMMIT
    for folder in (snapshot, base / "blobs", base / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (base / "refs" / "main").write_text(COMMIT)
    for name, content in files.items():
        blob = base / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(b"damaged" if name == damage else content)
        (snapshot / name).symlink_to(blob)
    return snapshot


def test_sources_are_the_cards_and_the_cards_name_them() -> None:
    cards = encoder_cards()
    for name, source in hub.SOURCES.items():
        card = cards[name]
        assert card.weights_fetcher == "encoders.hub:fetch" and source.repository in card.weights_source
        assert card.weights_locator == f"encoders.hub:locate_{name.replace('-', '_')}"
        assert card.locate_weights() is None
        assert ("gated" in card.weights_source or "login" in card.weights_source) == source.gated


def test_cached_files_are_found_and_incomplete_ones_not(cache: Path) -> None:
    assert ECHO_CLIP_CARD.locate_weights() is None
    snapshot = put(cache, "mkaichristensen/echo-clip", {"open_clip_pytorch_model.bin": b"weights"})
    assert ECHO_CLIP_CARD.locate_weights() is None, "the settings are not there yet"
    put(cache, "mkaichristensen/echo-clip", {"open_clip_config.json": b"{}"})
    assert ECHO_CLIP_CARD.locate_weights() == snapshot


def test_the_cache_is_huggingface_hubs(cache: Path) -> None:
    from huggingface_hub import try_to_load_from_cache

    snapshot = put(cache, "google/medsiglip-448", {"model.safetensors": b"w", "config.json": b"{}"})
    found = try_to_load_from_cache("google/medsiglip-448", "model.safetensors", cache_dir=cache)
    assert found == str(hub.locate("medsiglip") / "model.safetensors") == str(snapshot / "model.safetensors")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({}, str(Path.home() / ".cache/huggingface/hub")),
    ],
)
def test_the_cache_is_where_the_environment_says(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(hub.cache_folder()) == expected
    # In a fresh process, since huggingface_hub reads the environment once.
    script = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == expected


def test_looking_imports_neither_torch_nor_huggingface_hub() -> None:
    script = (
        "import sys; from embedstore.encoder import encoder_cards;"
        "[card.locate_weights() for card in encoder_cards().values()];"
        "heavy = {'torch', 'huggingface_hub', 'open_clip', 'transformers', 'timm', 'tokenizers', 'PIL'};"
        "heavy &= set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr


def test_offline_a_missing_file_is_named_with_where_to_get_and_put_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EnvironmentFailure) as caught:
        hub.fetch(ECHO_CLIP_CARD)
    said = str(caught.value)
    for part in (
        "HF_HUB_OFFLINE is set",
        "open_clip_pytorch_model.bin",
        "https://huggingface.co/mkaichristensen/echo-clip",
        "--weights echo-clip=FOLDER",
        str(cache),
    ):
        assert part in said
    assert "\n" not in said
    snapshot = put(
        cache, "mkaichristensen/echo-clip", {"open_clip_pytorch_model.bin": b"w", "open_clip_config.json": b"{}"}
    )
    assert hub.fetch(ECHO_CLIP_CARD) == snapshot


class Hub:
    """Stands for the network: gives the files that it has, raises what it is told."""

    def __init__(self, cache: Path, files: dict[str, bytes], *, damage: str | None = None) -> None:
        self.cache, self.files, self.damage = cache, files, damage
        self.asked: list[tuple[str, str | None]] = []
        self.error: Exception | None = None

    def __call__(self, repository: str, file: str, *, revision: str | None = None) -> str:
        from huggingface_hub.errors import RemoteEntryNotFoundError

        self.asked.append((file, revision))
        if self.error is not None:
            raise self.error
        if file not in self.files:
            raise RemoteEntryNotFoundError("404", response=SimpleNamespace(headers={}, request=None, status_code=404))
        snapshot = put(self.cache, repository, {}) / file
        if not snapshot.exists():
            put(self.cache, repository, {file: self.files[file]}, damage=self.damage)
        return str(snapshot)


@pytest.fixture
def network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    import huggingface_hub

    def connect(files: dict[str, bytes], *, damage: str | None = None) -> Hub:
        stand_in = Hub(cache, files, damage=damage)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", stand_in)
        return stand_in

    return connect


def test_fetching_takes_what_there_is_from_one_commit(network, cache: Path) -> None:
    stand_in = network(
        {"open_clip_pytorch_model.bin": b"weights", "open_clip_config.json": b"{}", "README.md": b"read"}
    )
    folder = hub.fetch(ECHO_CLIP_CARD)
    assert sorted(path.name for path in folder.iterdir()) == ["open_clip_config.json", "open_clip_pytorch_model.bin"]
    assert stand_in.asked == [
        ("open_clip_model.safetensors", None),
        ("open_clip_pytorch_model.bin", None),
        ("open_clip_config.json", COMMIT),
    ]
    assert ECHO_CLIP_CARD.locate_weights() == folder


def test_tokenizers_come_along_where_they_are_there(network) -> None:
    network({"model.safetensors": b"w", "config.json": b"{}", "tokenizer.json": b"{}"})
    assert (hub.fetch(SIGLIP2_CARD) / "tokenizer.json").is_file()


def test_a_damaged_download_is_found_and_removed(network, cache: Path) -> None:
    network({"model.safetensors": b"weights", "config.json": b"{}"}, damage="model.safetensors")
    stated = hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(CorruptionError, match=f"the hub states {stated}; it was removed: fetch it again"):
        hub.fetch(SIGLIP2_CARD)
    assert SIGLIP2_CARD.locate_weights() is None


def response(status: int) -> SimpleNamespace:
    return SimpleNamespace(headers={}, request=None, status_code=status)


def test_refusals_say_what_to_do(network) -> None:
    from huggingface_hub import errors

    stand_in = network({})
    stand_in.error = errors.GatedRepoError("401 Client Error", response=response(401))
    with pytest.raises(
        PolicyError, match=r"'medsiglip' is gated: accept its terms at https://huggingface.co/google/meds"
    ):
        hub.fetch(MEDSIGLIP_CARD)
    stand_in.error = errors.RepositoryNotFoundError("401 Client Error", response=response(401))
    with pytest.raises(PolicyError, match=r"asks for a login with: hf auth login"):
        hub.fetch(ECHO_CLIP_CARD)
    for error in (
        errors.LocalEntryNotFoundError("An error happened while trying to locate the file.\nMore."),
        ConnectionError("Name or service not known"),
        errors.HfHubHTTPError("503 Server Error", response=response(503)),
    ):
        stand_in.error = error
        with pytest.raises(EnvironmentFailure, match=r"the hub is not reached .*--weights siglip2=FOLDER") as caught:
            hub.fetch(SIGLIP2_CARD)
        assert "\n" not in str(caught.value)
    stand_in.error = None
    with pytest.raises(EnvironmentFailure, match="has none of model.safetensors, .* any more"):
        hub.fetch(SIGLIP2_CARD)


def test_other_names_are_not_on_the_hub() -> None:
    with pytest.raises(UnknownNameError, match="'echo-klip' is not on the hub; did you mean 'echo-clip'"):
        hub.locate("echo-klip")
