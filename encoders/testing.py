"""What an encoder has to keep to, as tests that any package can run on its own card.

In a test file of that package::

    from encoders.testing import EncoderConformance

    class TestMyEncoder(EncoderConformance):
        reference = "my_package.cards:CARD"

pytest finds the inherited tests. The module itself needs neither pytest nor torch.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from embedstore.encoder import Encoded, Encoder, EncoderCard, LoadRequest, load_encoder, resolve_string
from embedstore.spec import EncoderSpec, FrameSampling

__all__ = ["EncoderConformance"]

_FRAME_SIZES = ((240, 320), (600, 800), (301, 223))  # pixels, wide, large and upright with odd sides
_WINDOW = 16  # frames given to an encoder whose rule does not say how many it takes
_DEPTH = 3  # how far attributes are followed in search of a module

# Run in a fresh interpreter: an audit hook refuses every connection and name look-up, then the card is imported and
# the preprocessing is unpickled and run, as a decode worker would.
_FRESH_IMPORT = """
import pickle, sys

def refuse(event, arguments):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"}:
        raise SystemExit(f"importing the card reaches for the network: {event} {arguments[-1]!r}")

sys.addaudithook(refuse)
module_name, _, attribute = sys.argv[1].partition(":")
module = __import__(module_name, fromlist=[attribute])
getattr(module, attribute).locate_weights()
if "torch" in sys.modules:
    raise SystemExit("importing the card, or locating its weights, imports torch")
preprocess, frames = pickle.load(sys.stdin.buffer)
made = preprocess(frames)
if "torch" in sys.modules:
    raise SystemExit("preprocessing imports torch")
sys.stdout.buffer.write(made.tobytes())
"""


@cache
def _card(reference: str) -> EncoderCard:
    card = resolve_string(reference)
    if not isinstance(card, EncoderCard):
        raise TypeError(f"{reference} is a {type(card).__name__}, not an EncoderCard")
    return card


@cache
def _load(reference: str, spec_weights: Path | None, variant: str, weights: Path | None, device: str) -> Encoder:
    spec = _spec(_card(reference), variant, spec_weights)
    return load_encoder(_card(reference), LoadRequest(spec=spec, weights=weights, device=device))


def _spec(card: EncoderCard, variant: str, weights: Path | None) -> EncoderSpec:
    """Return the spec of a variant; the published digest is that of the published weights only."""
    digest = card.weights_sha256 if weights is None else _digest(weights)
    return card.spec(variant=variant, weights_sha256=digest)


@cache
def _digest(weights: Path) -> str | None:
    if weights.is_dir():
        return None
    with weights.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _modules(thing: Any, *, depth: int = _DEPTH) -> Iterator[Any]:
    """Yield the torch modules among an object's attributes, without importing torch."""
    for value in getattr(thing, "__dict__", {}).values():
        if hasattr(value, "training") and hasattr(value, "named_modules"):
            yield value
        elif depth > 1:
            yield from _modules(value, depth=depth - 1)


class EncoderConformance:
    """Subclass it as ``Test...`` and set `reference`.

    Attributes
    ----------
    reference : str
        ``module:CARD``, as in the entry point.
    weights : Path or None
        The checkpoint; None takes what the card locates.
    device : str
        Where to run.
    batch_size : int
        The constant batch of the tests.
    batch_tolerance : float
        By how much vectors may differ between batch sizes, as a share of the largest absolute value.
    """

    reference: ClassVar[str]
    weights: ClassVar[Path | None] = None
    device: ClassVar[str] = "cpu"
    batch_size: ClassVar[int] = 4
    batch_tolerance: ClassVar[float] = 1e-4

    @property
    def card(self) -> EncoderCard:
        """The card under test."""
        return _card(self.reference)

    @property
    def encoder(self) -> Encoder:
        """The published variant, loaded once."""
        return self.load("published")

    def load(self, variant: str) -> Encoder:
        """Load one variant of the card, once for all tests."""
        weights = self.weights or self.card.locate_weights()
        return _load(self.reference, self.weights, variant, weights, self.device)

    def frames(self, *, height: int = 240, width: int = 320, seed: int = 0) -> npt.NDArray[np.uint8]:
        """Return one window of smooth coloured noise, (T, height, width, 3) uint8."""
        sampling = self.card.variants["published"].sampling
        n_frames = _WINDOW
        if self.card.unit == "clip":
            rule = FrameSampling(sampling.rule, n_windows=1, padding=sampling.padding)
            n_frames = len(rule.resolve(n_frames=1024, fps=30.0).windows[0])
        coarse = np.random.default_rng(seed).integers(0, 256, (n_frames, 9, 9, 3), dtype=np.uint8)
        rows, columns = np.arange(height) * 9 // height, np.arange(width) * 9 // width
        return coarse[:, rows][:, :, columns]

    def inputs(self, count: int, *, seed: int = 0) -> npt.NDArray[Any]:
        """Return ``count`` distinct model inputs, ``(count, *input_shape)``."""
        made: list[npt.NDArray[Any]] = []
        while len(made) < count:
            window = self.encoder.preprocess(self.frames(seed=1000 * seed + len(made)))
            made.extend(window if self.card.unit == "frame" else [window])
        return np.ascontiguousarray(np.stack(made[:count]))

    def encode(self, batch: npt.NDArray[Any]) -> Encoded:
        """Encode a copy of ``batch`` and see that the encoder left it alone."""
        given = batch.copy()
        encoded = self.encoder.encode(given)
        assert given.tobytes() == batch.tobytes(), "encode changes the batch that it is given"
        return encoded

    # What the card says.

    def test_card_variants_have_distinct_fingerprints(self) -> None:
        """No variant can be mistaken for another."""
        prints = {name: _spec(self.card, name, self.weights).fingerprint for name in self.card.variants}
        assert len(set(prints.values())) == len(prints), f"variants share a fingerprint: {prints}"

    def test_fingerprint_follows_what_changes_a_vector(self) -> None:
        """Each field of the spec changes the fingerprint; the batch size is not among them."""
        spec = _spec(self.card, "published", self.weights)
        changed = {
            "name": replace(spec, name=spec.name + "x"),
            "variant": replace(spec, variant="other"),
            "unit": replace(spec, unit="clip" if spec.unit == "frame" else "frame"),
            "weights_sha256": replace(spec, weights_sha256="0" * 64),
            "preprocessing": replace(spec, preprocessing={**spec.preprocessing, "other": 1}),
            "preprocessing_revision": replace(spec, preprocessing_revision=spec.preprocessing_revision + 1),
            "sampling": replace(spec, sampling=FrameSampling("consecutive:7")),
            "pooling": replace(spec, pooling=spec.pooling + "x"),
            "precision": replace(spec, precision="bf16"),
            "dtype": replace(spec, dtype="float32"),
            "clip_dim": replace(spec, clip_dim=spec.clip_dim + 1),
        }
        for field, other in changed.items():
            assert other.fingerprint != spec.fingerprint, f"the fingerprint does not follow {field}"
        assert EncoderSpec.from_dict(spec.to_dict()) == spec, "the spec does not survive its own JSON form"

    def test_import_is_light(self) -> None:
        """The card imports without torch and network; so does the pickled preprocessing in a worker."""
        frames = self.frames()
        child = subprocess.run(
            [sys.executable, "-c", _FRESH_IMPORT, self.reference],
            input=pickle.dumps((self.encoder.preprocess, frames)),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert child.returncode == 0, child.stderr.decode(errors="replace").strip()[-2000:]
        here = self.encoder.preprocess(frames)
        assert child.stdout == here.tobytes(), "preprocessing gives other bytes in another process"

    # Preprocessing.

    def test_preprocess_shape_and_dtype(self) -> None:
        """Frames of any size become inputs of the one declared shape and dtype; the frames stay as they were."""
        encoder = self.encoder
        for height, width in _FRAME_SIZES:
            frames = self.frames(height=height, width=width)
            kept = frames.copy()
            made = encoder.preprocess(frames)
            wanted = (len(frames), *encoder.input_shape) if self.card.unit == "frame" else encoder.input_shape
            assert made.shape == tuple(wanted), f"{height}x{width} frames give {made.shape}, not {wanted}"
            assert made.dtype == np.dtype(encoder.input_dtype), f"inputs are {made.dtype}, not {encoder.input_dtype}"
            assert frames.tobytes() == kept.tobytes(), "preprocessing changes the frames that it is given"
            assert made.tobytes() == encoder.preprocess(frames).tobytes(), "preprocessing is not deterministic"

    def test_variants_are_followed(self) -> None:
        """A variant that declares another preprocessing prepares other inputs, or makes other vectors of them."""
        published = self.encoder.preprocess(self.frames())
        for name, variant in self.card.variants.items():
            if variant.preprocessing:
                other = self.load(name)
                assert other.spec.variant == name, f"asked for variant {name}, loaded {other.spec.variant}"
                if other.preprocess(self.frames()).tobytes() != published.tobytes():
                    continue
                batch = self.inputs(self.batch_size)
                same = other.encode(batch).vectors.tobytes() == self.encoder.encode(batch).vectors.tobytes()
                assert not same, f"variant {name} prepares the same inputs as published and makes the same vectors"

    # Encoding.

    def test_spec_is_the_one_asked_for(self) -> None:
        """The loaded encoder says that it fulfils the spec of the request."""
        assert self.encoder.spec == _spec(self.card, "published", self.weights)

    def test_vectors_shape_and_dtype(self) -> None:
        """One finite float32 row an input, of the declared dimension."""
        encoded = self.encode(self.inputs(self.batch_size))
        dim = self.card.frame_dim if self.card.unit == "frame" else self.card.clip_dim
        assert encoded.vectors.shape == (self.batch_size, dim), f"{encoded.vectors.shape}, declared {dim}"
        assert encoded.vectors.dtype == np.float32, f"vectors are {encoded.vectors.dtype}"
        assert np.isfinite(encoded.vectors).all(), "vectors hold values that are not finite"
        if encoded.steps is not None:
            assert self.card.unit == "clip", "a frame encoder has no steps inside its input"
            assert encoded.steps.shape[::2] == (self.batch_size, self.card.frame_dim), f"steps {encoded.steps.shape}"
            assert encoded.steps.dtype == np.float32, f"steps are {encoded.steps.dtype}"
            assert np.isfinite(encoded.steps).all(), "steps hold values that are not finite"

    def test_inputs_matter(self) -> None:
        """Different inputs have different vectors."""
        vectors = self.encode(self.inputs(self.batch_size)).vectors
        assert len({row.tobytes() for row in vectors}) == self.batch_size, "different inputs share a vector"

    def test_deterministic_and_stateless(self) -> None:
        """A batch gives the same bytes again, also after other batches went through."""
        batch = self.inputs(self.batch_size)
        first = self.encode(batch)
        self.encode(self.inputs(self.batch_size, seed=1))
        again = self.encode(batch)
        assert first.vectors.tobytes() == again.vectors.tobytes(), (
            "the same batch gives other vectors the second time"
        )
        if first.steps is not None and again.steps is not None:
            assert first.steps.tobytes() == again.steps.tobytes(), "the same batch gives other steps the second time"

    def test_eval_mode(self) -> None:
        """No module is left in training mode, where dropout and batch statistics are at work."""
        for module in _modules(self.encoder):
            training = [name or "the model" for name, part in module.named_modules() if part.training]
            assert not training, f"in training mode: {', '.join(training[:5])}"

    def test_rows_are_independent(self) -> None:
        """At a constant batch shape a row is bit-equal at every position, whatever its neighbours."""
        batch = self.inputs(self.batch_size)
        rows = [row.tobytes() for row in self.encode(batch).vectors]
        for shift in range(1, self.batch_size):
            moved = self.encode(np.roll(batch, shift, axis=0)).vectors
            for position, row in enumerate(moved):
                origin = (position - shift) % self.batch_size
                assert row.tobytes() == rows[origin], f"a row changes on moving from place {origin} to {position}"
        padded = np.zeros_like(batch)
        padded[0] = batch[0]
        assert self.encode(padded).vectors[0].tobytes() == rows[0], "a row changes with its neighbours"

    def test_batch_sizes_agree(self) -> None:
        """Other batch sizes give the same vectors to `batch_tolerance`."""
        batch = self.inputs(2 * self.batch_size)
        whole = self.encode(batch).vectors
        scale = float(np.abs(whole).max())
        for size in (1, self.batch_size):
            parts = np.concatenate([self.encode(batch[i : i + size]).vectors for i in range(0, len(batch), size)])
            off = float(np.abs(parts - whole).max()) / scale
            assert off <= self.batch_tolerance, (
                f"batches of {size} and {len(batch)} differ by {off:.2e} of the largest"
            )
