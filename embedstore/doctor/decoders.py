"""Whether each decoder decodes: a tiny picture of known pixels, in a process that may die of it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedstore.doctor.finding import Finding
from embedstore.errors import EnvironmentFailure
from embedstore.media.pool import JobFailure, WorkerPool

__all__ = ["DECODERS", "check_decoders", "try_decoder"]

_TIMEOUT_S = 60.0
_HEIGHT, _WIDTH, _FRAMES = 48, 64, 3
_LOSSY = 12  # grey levels by which smooth JPEG frames may differ
_INSTALL = "pip install 'embedstore[media]'"


def _pixels() -> npt.NDArray[np.uint8]:
    """Smooth frames, (T, H, W) uint8, another one at each place and time."""
    time, y, x = np.mgrid[:_FRAMES, :_HEIGHT, :_WIDTH]
    return np.asarray(40 + 30 * time + y + x, dtype=np.uint8)


def _compare(decoded: npt.NDArray[np.uint8], wanted: npt.NDArray[np.uint8], *, tolerance: int) -> None:
    if decoded.shape != wanted.shape:
        raise ValueError(f"it gives pixels of shape {decoded.shape} instead of {wanted.shape}")
    off = int(np.abs(decoded.astype(np.int16) - wanted).max())
    if off > tolerance:
        raise ValueError(f"its pixels are {off} grey levels off")


def _try_av() -> None:
    import av

    made = io.BytesIO()
    with av.open(made, "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "yuvj420p"
        for frame in _pixels():
            for packet in stream.encode(
                av.VideoFrame.from_ndarray(np.repeat(frame[..., None], 3, 2), format="rgb24")
            ):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    made.seek(0)
    with av.open(made) as container:
        frames = [frame.to_ndarray(format="rgb24")[..., 1] for frame in container.decode(video=0)]
    _compare(np.stack(frames), _pixels(), tolerance=_LOSSY)


def _try_cv2() -> None:
    import cv2

    picture = _pixels()[0]
    written, payload = cv2.imencode(".png", picture)
    if not written:
        raise ValueError("it writes no PNG")
    _compare(np.asarray(cv2.imdecode(payload, cv2.IMREAD_GRAYSCALE)), picture, tolerance=0)
    halved = cv2.resize(picture, (_WIDTH // 2, _HEIGHT // 2), interpolation=cv2.INTER_AREA)
    _compare(halved, picture[::2, ::2], tolerance=2)


def _try_pydicom() -> None:
    from pydicom import examples
    from pydicom.pixels import pixel_array

    # A JPEG clip that comes inside the package: 30 frames of 240x320.
    path = Path(str(examples.get_path("ybr_color")))
    frame = pixel_array(path, index=0, decoding_plugin="gdcm")
    if frame.shape != (240, 320, 3) or not 5 < float(frame.mean()) < 250:
        raise ValueError(f"its frame has shape {frame.shape} and mean {float(frame.mean()):.0f}")


def _try_nibabel() -> None:
    import gzip

    import nibabel

    image = nibabel.Nifti1Image(_pixels().transpose(2, 1, 0), np.eye(4))
    packed = gzip.compress(image.to_bytes())
    opened = nibabel.Nifti1Image.from_bytes(gzip.decompress(packed))
    _compare(np.asarray(opened.dataobj).transpose(2, 1, 0), _pixels(), tolerance=0)


def _try_pillow() -> None:
    from PIL import Image

    made = io.BytesIO()
    picture = _pixels()[0]
    Image.fromarray(picture).save(made, format="JPEG", quality=95)
    made.seek(0)
    with Image.open(made) as opened:
        _compare(np.asarray(opened), picture, tolerance=_LOSSY)


# Name: packages, what they read, the attempt.
DECODERS: Mapping[str, tuple[tuple[str, ...], str, Callable[[], None]]] = {
    "av": (("av",), "AVI and MP4", _try_av),
    "cv2": (("opencv-python-headless",), "PNG and JPEG, and scales frames", _try_cv2),
    "pydicom+gdcm": (("pydicom", "python-gdcm"), "DICOM", _try_pydicom),
    "nibabel": (("nibabel",), "NIfTI", _try_nibabel),
    "pillow": (("pillow",), "nothing by itself, but scales frames as published", _try_pillow),
}


def try_decoder(name: str) -> str | None:
    """Decode something tiny; return what is wrong, or None. Runs in a worker process."""
    try:
        DECODERS[name][2]()
    except ImportError as error:
        return f"import: {error}"
    # Whatever a decoder raises is what the doctor is asked about.
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return None


def _versions(packages: tuple[str, ...]) -> str | None:
    try:
        return ", ".join(f"{package} {version(package)}" for package in packages)
    except PackageNotFoundError:
        return None


def check_decoders() -> Iterator[Finding]:
    """Try every decoder; one that kills its process is a problem, one that is not installed is a note."""
    installed = [name for name in DECODERS if _versions(DECODERS[name][0]) is not None]
    outcomes: dict[str, object] = {}
    try:
        with WorkerPool(try_decoder, n_workers=1, timeout_s=_TIMEOUT_S) as pool:
            outcomes = dict(zip(installed, pool.imap(installed, max_in_flight=1), strict=True))
    except EnvironmentFailure as error:
        yield Finding(
            area="decoders", name="workers", status="problem", message=f"decode workers do not start: {error}"
        )
    for name, (packages, reads, _) in DECODERS.items():
        found = _versions(packages)
        if found is None:
            yield Finding(
                area="decoders",
                name=name,
                status="note",
                message=f"not installed: it reads {reads}; run: {_INSTALL}",
            )
        elif name in outcomes:
            outcome = outcomes[name]
            wrong = f"{outcome.reason}: {outcome.message}" if isinstance(outcome, JobFailure) else outcome
            yield Finding(
                area="decoders",
                name=name,
                status="ok" if wrong is None else "problem",
                message=f"{found}: decodes"
                if wrong is None
                else f"{found} does not decode a test picture ({wrong}); reinstall it: {_INSTALL}",
                facts={"versions": found},
            )
