"""A prompt bank from arrays, for tests of evaltools, which asks banks for no more than this."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa


@dataclass
class ArrayBank:
    """What `evaltools.prompt_bank.BankSource` asks for, from arrays."""

    vectors: np.ndarray
    rows: pa.Table
    name: str = "words"
    encoder: str = "toy-encoder"
    spec: dict[str, Any] = field(
        default_factory=lambda: {"bank_digest": "b" * 64, "logit_scale": 50.0, "tokenizer": {"kind": "toy"}}
    )
