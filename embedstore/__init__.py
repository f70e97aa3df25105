"""embedstore: embed echocardiography once with every foundation model, evaluate for ever on a CPU.

Examples
--------
>>> import embedstore
>>> store = embedstore.open("store")  # doctest: +SKIP
>>> vectors = store.get(dataset="phantom", encoder="pixel-stats").clips[:]  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from embedstore.bank import VectorBank
    from embedstore.embedding_set import EmbeddingSet
    from embedstore.encoder import Encoded, Encoder, EncoderCard, LoadRequest, TaskHead, Variant
    from embedstore.manifest import DatasetFacts, Manifest, ManifestField
    from embedstore.spec import EncoderSpec, FrameSampling
    from embedstore.store import Store
    from embedstore.vector_array import VectorArray

__version__ = "0.1.0"

__all__ = [
    "DatasetFacts",
    "EmbeddingSet",
    "Encoded",
    "Encoder",
    "EncoderCard",
    "EncoderSpec",
    "FrameSampling",
    "LoadRequest",
    "Manifest",
    "ManifestField",
    "Store",
    "TaskHead",
    "Variant",
    "VectorArray",
    "VectorBank",
    "open",
]

# Loaded when first asked for, so that `import embedstore` and the help of the commands stay quick.
_HOMES = {
    "DatasetFacts": "embedstore.manifest",
    "EmbeddingSet": "embedstore.embedding_set",
    "Encoded": "embedstore.encoder",
    "Encoder": "embedstore.encoder",
    "EncoderCard": "embedstore.encoder",
    "EncoderSpec": "embedstore.spec",
    "FrameSampling": "embedstore.spec",
    "LoadRequest": "embedstore.encoder",
    "Manifest": "embedstore.manifest",
    "ManifestField": "embedstore.manifest",
    "Store": "embedstore.store",
    "TaskHead": "embedstore.encoder",
    "Variant": "embedstore.encoder",
    "VectorArray": "embedstore.vector_array",
    "VectorBank": "embedstore.bank",
}


def open(path: str | Path = "store") -> Store:
    """Open a store for reading.

    Raises
    ------
    embedstore.errors.StoreNotFoundError
        There is no store at ``path``.
    """
    from embedstore.store import Store

    return Store.open(path)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'embedstore' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
