"""The prompt banks that come with the encoders. A published bank is never changed: a new one is added."""

from __future__ import annotations

from pathlib import Path

__all__ = ["EMBEDSTORE_V1"]

EMBEDSTORE_V1 = Path(__file__).with_name("embedstore-v1.yaml")
