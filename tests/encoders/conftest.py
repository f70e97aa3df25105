"""Real pixels and real weights, opened once."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

from embedstore.encoder import LoadRequest
from encoders.efficientnet_lite import LITE0_CARD, EfficientNetLite, load_lite0

# Read when torch is first imported. On cores that are shared with other processes OpenMP's spinning at every barrier
# makes a forward up to ten times slower than sleeping there.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(scope="session")
def a4c_frames() -> np.ndarray:
    """The apical four-chamber clip of the pydicom package, (30, 240, 320, 3) uint8 RGB."""
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("gdcm")
    from pydicom.pixels import pixel_array

    return np.asarray(pixel_array(pydicom.examples.get_path("ybr_color"), decoding_plugin="gdcm"))


@pytest.fixture(scope="session")
def photos() -> np.ndarray:
    """Two photographs of scikit-learn, a temple and a flower, (2, 427, 640, 3) uint8 RGB."""
    from sklearn.datasets import load_sample_image

    return np.stack([load_sample_image("china.jpg"), load_sample_image("flower.jpg")])


@pytest.fixture(scope="session")
def lite0() -> Callable[..., EfficientNetLite]:
    """Return a function that loads EfficientNet-Lite0 with its published weights, each spec once."""
    loaded: dict[tuple[str, str], EfficientNetLite] = {}

    def load(*, variant: str = "published", precision: str = "float32") -> EfficientNetLite:
        if (variant, precision) not in loaded:
            spec = LITE0_CARD.spec(variant=variant, precision=precision, weights_sha256=LITE0_CARD.weights_sha256)
            loaded[variant, precision] = load_lite0(LoadRequest(spec=spec, weights=None, device="cpu"))
        return loaded[variant, precision]

    return load
