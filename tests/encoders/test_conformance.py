"""The conformance suite on the encoders of this package, and on encoders that break one rule each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from embedstore.encoder import Encoded
from encoders import pixel_stats
from encoders.efficientnet_lite import LITE0_CARD
from encoders.testing import EncoderConformance


class TestEfficientNetLite0(EncoderConformance):
    reference = "encoders.efficientnet_lite:LITE0_CARD"
    batch_size = LITE0_CARD.batch_size["cpu"]


class TestPixelStats(EncoderConformance):
    reference = "encoders.pixel_stats:CARD"
    batch_tolerance = 0.0


class Faulty(pixel_stats.PixelStats):
    """The control with one fault, named by the test."""

    fault = ""
    calls = 0

    def encode(self, batch: np.ndarray) -> Encoded:
        if self.fault == "changes the batch":
            batch[0] = 0
        vectors = super().encode(batch).vectors
        self.calls += 1
        if self.fault == "second time":
            vectors = vectors + np.float32(self.calls)
        elif self.fault == "neighbours":
            vectors = vectors - vectors.mean(axis=0)
        elif self.fault == "moving":
            vectors[0] *= 2
        elif self.fault == "batches of":
            vectors = vectors * np.float32(len(batch))
        elif self.fault == "not finite":
            vectors[0, 0] = np.nan
        elif self.fault == "declared":
            vectors = vectors[:, :-1]
        elif self.fault == "vectors are float64":
            vectors = vectors.astype(np.float64)
        elif self.fault == "share a vector":
            vectors[:] = 1
        return Encoded(vectors=vectors)


class _Training:
    """Looks like a torch module that was left in training mode."""

    training = True

    def named_modules(self) -> list[tuple[str, Any]]:
        return [("", self)]


def _suite(encoder: Any, *, card: str = "encoders.pixel_stats:CARD") -> EncoderConformance:
    class Suite(EncoderConformance):
        reference = card

        def load(self, variant: str) -> Any:
            return encoder

    return Suite()


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("changes the batch", "test_vectors_shape_and_dtype"),
        ("second time", "test_deterministic_and_stateless"),
        ("neighbours", "test_rows_are_independent"),
        ("moving", "test_rows_are_independent"),
        ("batches of", "test_batch_sizes_agree"),
        ("not finite", "test_vectors_shape_and_dtype"),
        ("declared", "test_vectors_shape_and_dtype"),
        ("vectors are float64", "test_vectors_shape_and_dtype"),
        ("share a vector", "test_inputs_matter"),
    ],
)
def test_a_fault_in_encoding_is_found(fault: str, check: str) -> None:
    encoder = Faulty(spec=pixel_stats.CARD.spec())
    getattr(_suite(encoder), check)()
    encoder.fault = fault
    # A mean over the batch shows at the first move already, in the same words as a row that depends on its place.
    with pytest.raises(AssertionError, match="moving" if fault == "neighbours" else fault):
        getattr(_suite(encoder), check)()


def test_a_row_that_follows_its_neighbours_is_found_where_moving_keeps_them() -> None:
    class FollowsTheBatchMean(pixel_stats.PixelStats):
        def encode(self, batch: np.ndarray) -> Encoded:
            return Encoded(vectors=super().encode(batch).vectors + np.float32(int(batch.sum(dtype=np.int64)) % 1000))

    with pytest.raises(AssertionError, match="neighbours"):
        _suite(FollowsTheBatchMean(spec=pixel_stats.CARD.spec())).test_rows_are_independent()


def test_training_mode_is_found() -> None:
    encoder = pixel_stats.PixelStats(spec=pixel_stats.CARD.spec())
    _suite(encoder).test_eval_mode()
    encoder.holder = type("Holder", (), {})()
    encoder.holder.network = _Training()
    with pytest.raises(AssertionError, match="training mode: the model"):
        _suite(encoder).test_eval_mode()


@pytest.mark.parametrize(
    ("module", "complaint"),
    [
        ("import torch", "imports torch"),
        ("import socket\nsocket.getaddrinfo('localhost', 80)", "reaches for the network"),
    ],
)
def test_a_heavy_card_is_found(module: str, complaint: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heavy_card_of_a_plugin.py").write_text(f"{module}\nfrom encoders.pixel_stats import CARD\n")
    monkeypatch.syspath_prepend(tmp_path)
    suite = _suite(pixel_stats.PixelStats(spec=pixel_stats.CARD.spec()), card="heavy_card_of_a_plugin:CARD")
    with pytest.raises(AssertionError, match=complaint):
        suite.test_import_is_light()


def test_a_reference_that_is_no_card_is_refused() -> None:
    class Suite(EncoderConformance):
        reference = "encoders.pixel_stats:PixelStats"

    with pytest.raises(TypeError, match="not an EncoderCard"):
        _ = Suite().card
