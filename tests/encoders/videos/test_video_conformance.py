"""The conformance suite on the video transformers, with small weights of the real layout."""

from __future__ import annotations

import pytest

from encoders.testing import EncoderConformance


class Published(EncoderConformance):
    """Takes a model of one block of the card's name; a batch of two keeps it quick."""

    batch_size = 2

    @pytest.fixture(autouse=True)
    def small_weights(self, video) -> None:
        type(self).weights = video(self.card.name, depth=1)[0]


class TestVideoMae(Published):
    reference = "encoders.videomae:VIDEOMAE_CARD"


# The same code around other towers, with larger widths and longer windows.


@pytest.mark.slow
class TestEchoVisionFm(Published):
    reference = "encoders.videomae:ECHO_VISION_FM_CARD"


@pytest.mark.slow
class TestEchoJepa(Published):
    reference = "encoders.echojepa:ECHOJEPA_CARD"


@pytest.mark.slow
class TestEchoFm(Published):
    reference = "encoders.echofm:ECHOFM_CARD"


@pytest.mark.slow
class TestVjepa2(Published):
    reference = "encoders.vjepa2:VJEPA2_CARD"
