"""The conformance suite on every published frame encoder, with small weights of the real layout or real ones."""

from __future__ import annotations

import pytest

from encoders.testing import EncoderConformance


class Published(EncoderConformance):
    """Takes the small model of the card's name; a batch of two keeps it quick."""

    batch_size = 2

    @pytest.fixture(autouse=True)
    def small_weights(self, small) -> None:
        type(self).weights = small(self.card.name)[0]


class TestEchoClip(Published):
    reference = "encoders.clip_family:ECHO_CLIP_CARD"


class TestBiomedClip(Published):
    reference = "encoders.clip_family:BIOMEDCLIP_CARD"


class TestClip(Published):
    reference = "encoders.clip_family:CLIP_CARD"
    # Where products of few rows were seen to follow their place: see encoders/rows.py.
    batch_size = 5


class TestSiglip2(Published):
    reference = "encoders.siglip:SIGLIP2_CARD"


class TestDinov2(Published):
    reference = "encoders.dino:DINOV2_CARD"


class TestDinov3(Published):
    reference = "encoders.dino:DINOV3_CARD"


class Installed(EncoderConformance):
    """Takes the weights of an installed package."""

    batch_size = 2

    @pytest.fixture(autouse=True)
    def needs_weights(self) -> None:
        if self.card.locate_weights() is None:
            pytest.skip(f"the package with the weights of {self.card.name} is not installed")


class TestEfficientNetLite1(Installed):
    reference = "encoders.imagenet:LITE1_CARD"


class TestMobileNetV2(Installed):
    reference = "encoders.imagenet:MOBILENET_V2_CARD"


# The same code at other sizes.


@pytest.mark.slow
class TestEfficientNetLite2(Installed):
    reference = "encoders.imagenet:LITE2_CARD"


@pytest.mark.slow
class TestEchoClipR(Published):
    reference = "encoders.clip_family:ECHO_CLIP_R_CARD"


@pytest.mark.slow
class TestClipVitB16(Published):
    reference = "encoders.clip_family:CLIP_VIT_B_16_CARD"


@pytest.mark.slow
class TestClipVitL14(Published):
    reference = "encoders.clip_family:CLIP_VIT_L_14_CARD"


@pytest.mark.slow
class TestSiglip2So400m(Published):
    reference = "encoders.siglip:SIGLIP2_SO400M_CARD"


@pytest.mark.slow
class TestMedsiglip(Published):
    reference = "encoders.siglip:MEDSIGLIP_CARD"


@pytest.mark.slow
class TestDinov2Small(Published):
    reference = "encoders.dino:DINOV2_SMALL_CARD"


@pytest.mark.slow
class TestDinov2Large(Published):
    reference = "encoders.dino:DINOV2_LARGE_CARD"


@pytest.mark.slow
class TestDinov3Small(Published):
    reference = "encoders.dino:DINOV3_SMALL_CARD"


@pytest.mark.slow
class TestDinov3Large(Published):
    reference = "encoders.dino:DINOV3_LARGE_CARD"
