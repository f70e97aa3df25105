"""`Scanner`: sector geometry, speckle, attenuation, gain and scan conversion.

A frame is made as a scanner makes it: random scatterers that move with the tissue, weighted by echogenicity, are
blurred by a pulse that is short along the beam and wide across it; the envelope plus noise is compressed to a
logarithmic grey scale, and the beams are laid out as a sector.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from embedstore.phantom.motion import Plane
from embedstore.phantom.tissue import TissueMap

__all__ = ["LABEL", "Scanner", "Settings", "burn_label"]

LABEL = "SYNTHETIC"
# A 3x5 pixel font for the letters of the label: it stays readable in an image of 112 pixels.
_GLYPHS = {
    "S": ("###", "#..", "###", "..#", "###"),
    "Y": ("#.#", "#.#", "###", ".#.", ".#."),
    "N": ("##.", "#.#", "#.#", "#.#", "#.#"),
    "T": ("###", ".#.", ".#.", ".#.", ".#."),
    "H": ("#.#", "#.#", "###", "#.#", "#.#"),
    "E": ("###", "#..", "##.", "#..", "###"),
    "I": ("###", ".#.", ".#.", ".#.", "###"),
    "C": ("###", "#..", "#..", "#..", "###"),
}
_LABEL_GREY = 150

_N_BEAMS = 112
_N_SAMPLES = 208
_NEAREST_CM = 0.25
_VALVE_ECHO = 0.5

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a sonographer sets, and what differs between machines; independent of the heart.

    Attributes
    ----------
    width, height : int
        Image size in pixels, even.
    depth_cm, half_angle_deg : float
        Extent of the sector.
    gain_db, range_db : float
        Amplitude shown white, and dynamic range below it.
    attenuation_db_per_cm : float
        What time-gain compensation leaves.
    noise_db : float
        Electronic noise at full depth.
    gamma : float
        Exponent of the grey curve.
    beam_width : float
        Standard deviation of the pulse across beams, in beams.
    """

    width: int
    height: int
    depth_cm: float
    half_angle_deg: float
    gain_db: float
    range_db: float
    attenuation_db_per_cm: float
    noise_db: float
    gamma: float
    beam_width: float

    @property
    def spacing_mm(self) -> float:
        """Pixel distance, the same in both directions: the sector just fits."""
        sector_width_cm = 2 * self.depth_cm * np.sin(np.radians(self.half_angle_deg))
        return float(10.0 * max(sector_width_cm / (0.97 * self.width), self.depth_cm / (0.97 * self.height)))


class Scanner:
    """Draws frames of one clip.

    Parameters
    ----------
    settings : Settings
    rng : numpy Generator
        Scatterers, noise and shadows.
    """

    def __init__(self, settings: Settings, rng: np.random.Generator) -> None:
        self.settings = settings
        self._rng = rng
        angle = np.radians(settings.half_angle_deg)
        self._angles = np.linspace(-angle, angle, _N_BEAMS, dtype=np.float32)
        self._ranges = np.linspace(_NEAREST_CM, settings.depth_cm, _N_SAMPLES, dtype=np.float32)
        self._gain = self._beam_gain()
        self._noise = self._noise_field()
        self._clutter = self._near_field()

    @cached_property
    def _layout(self) -> tuple[Float, Float]:
        """Sample and beam of each pixel, outside the sector far off."""
        settings, spacing_cm = self.settings, self.settings.spacing_mm / 10.0
        top_cm = 0.015 * settings.height * spacing_cm
        x = (np.arange(settings.width, dtype=np.float32) - 0.5 * (settings.width - 1)) * spacing_cm
        y = np.arange(settings.height, dtype=np.float32)[:, None] * spacing_cm - top_cm
        reach, angle = np.hypot(x, y), np.arctan2(x, y)
        sample = (reach - self._ranges[0]) / (self._ranges[1] - self._ranges[0])
        beam = (angle - self._angles[0]) / (self._angles[1] - self._angles[0])
        outside = (sample < 0) | (sample > _N_SAMPLES - 1) | (beam < 0) | (beam > _N_BEAMS - 1)
        beam[outside] = -1e4
        return beam.astype(np.float32), sample.astype(np.float32)

    @property
    def sector(self) -> npt.NDArray[np.bool_]:
        """(height, width): which pixels lie in the sector."""
        return np.asarray(self._layout[0] >= 0)

    # -- what is still in the sector -------------------------------------------------------------------------

    def _blurred(self, shape: tuple[int, int], sigma: tuple[float, float]) -> Float:
        """Return Gaussian noise of unit variance, correlated over ``sigma`` (rows, columns)."""
        import cv2

        field = self._rng.standard_normal(shape, dtype=np.float32)
        blurred = cv2.GaussianBlur(field, (0, 0), sigmaX=sigma[1], sigmaY=sigma[0], borderType=cv2.BORDER_REFLECT)
        return np.asarray(blurred / blurred.std(), dtype=np.float32)

    def _beam_gain(self) -> Float:
        """Amplitude factor by range and beam: attenuation, weaker side beams, rib and lung shadows."""
        settings = self.settings
        uneven = 2.0 * self._blurred((_N_SAMPLES, _N_BEAMS), (40.0, 10.0))
        edge = (np.abs(self._angles) / self._angles[-1]) ** 4
        loss = settings.attenuation_db_per_cm * (self._ranges[:, None] - 6.0) + 5.0 * edge[None, :]
        for _ in range(int(self._rng.integers(0, 3))):
            at, width = self._rng.uniform(-1.0, 1.0), self._rng.uniform(0.05, 0.12)
            off = (self._angles / self._angles[-1] - np.float32(at)) / np.float32(width)
            depth_db = self._rng.uniform(3.0, 9.0)
            loss = loss + np.float32(depth_db) * np.exp(-0.5 * off**2)[None, :]
        return np.asarray(10.0 ** ((uneven - loss) / 20.0), dtype=np.float32)

    def _noise_field(self) -> Float:
        """A field of complex noise, of which each frame shows another part; stronger with depth."""
        parts = [self._blurred((2 * _N_SAMPLES, 2 * _N_BEAMS), (0.8, 0.9)) for _ in range(2)]
        return np.stack(parts, axis=-1)

    def _near_field(self) -> Float:
        """Chest wall and ring-down: layers at the probe that do not move with the heart."""
        texture = np.stack([self._blurred((_N_SAMPLES, _N_BEAMS), (0.8, 5.0)) for _ in range(2)], axis=-1)
        fade = 0.5 * np.exp(-((self._ranges / 1.1) ** 2)) + 0.035 * np.exp(-self._ranges / 3.0)
        return np.asarray(texture * fade[:, None, None], dtype=np.float32)

    def _noise_at(self) -> Float:
        row = int(self._rng.integers(_N_SAMPLES))
        beam = int(self._rng.integers(_N_BEAMS))
        return self._noise[row : row + _N_SAMPLES, beam : beam + _N_BEAMS]

    # -- frames ----------------------------------------------------------------------------------------------

    def scatterers(self, tissue: TissueMap) -> Float:
        """Return complex scatterers weighted by echogenicity: (rows, columns, 2)."""
        uneven = 10.0 ** (self._blurred(tissue.echo.shape, (12.0, 12.0)) * (1.5 / 20.0))
        parts = [self._blurred(tissue.echo.shape, (0.8, 0.8)) * tissue.echo * uneven for _ in range(2)]
        return np.stack(parts, axis=-1).astype(np.float32)

    @cached_property
    def _coarse(self) -> tuple[Float, Float]:
        """Sector positions of every second beam and sample: the motion between them is smooth."""
        beams = np.interp(np.arange(_N_BEAMS // 2) * 2 + 0.5, np.arange(_N_BEAMS), self._angles).astype(np.float32)
        samples = np.interp(np.arange(_N_SAMPLES // 2) * 2 + 0.5, np.arange(_N_SAMPLES), self._ranges)
        reach = samples.astype(np.float32)[:, None]
        return reach * np.sin(beams), reach * np.cos(beams)

    def frame(
        self,
        plane: Plane,
        tissue: TissueMap,
        scatterers: Float,
        *,
        activation: float,
        valves: tuple[float, float],
        sway_cm: tuple[float, float],
    ) -> npt.NDArray[np.uint8]:
        """Draw one frame.

        Parameters
        ----------
        scatterers : (rows, columns, 2) float32
            From `scatterers`, on the grid of ``tissue``.
        activation : float
            Of the left ventricle, 0 to 1.
        valves : (float, float)
            How far the mitral and the aortic valve are open.
        sway_cm : (float, float)
            Shift of the whole heart against the probe, by breathing.

        Returns
        -------
        (height, width) uint8
        """
        import cv2

        x_cm, y_cm = self._coarse
        q, z = plane.from_sector(x_cm - np.float32(sway_cm[0]), y_cm - np.float32(sway_cm[1]))
        q, z = plane.at_end_diastole(q, z, activation)
        size = (_N_BEAMS, _N_SAMPLES)
        columns = cv2.resize((q - np.float32(tissue.q_min_cm)) / np.float32(tissue.spacing_cm), size)
        rows = cv2.resize((z - np.float32(tissue.z_min_cm)) / np.float32(tissue.spacing_cm), size)
        echo = cv2.remap(scatterers, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        pulse = cv2.GaussianBlur(echo, (0, 0), sigmaX=self.settings.beam_width, sigmaY=0.9)
        # A wide pulse averages scatterers: restore their power.
        pulse *= np.float32(2.0 * np.sqrt(self.settings.beam_width))
        pulse += self._clutter
        envelope = cv2.magnitude(pulse[..., 0], pulse[..., 1]) + self._valves(plane, activation, valves, sway_cm)
        return self._display(envelope * self._gain)

    def _valves(
        self, plane: Plane, activation: float, valves: tuple[float, float], sway_cm: tuple[float, float]
    ) -> Float:
        import cv2

        layer = np.zeros((_N_SAMPLES, _N_BEAMS), dtype=np.uint8)
        for line in plane.leaflets(activation, *valves):
            x, y = (line + np.asarray(sway_cm)).T
            beam = (np.arctan2(x, y) - self._angles[0]) / (self._angles[1] - self._angles[0])
            sample = (np.hypot(x, y) - self._ranges[0]) / (self._ranges[1] - self._ranges[0])
            points = np.rint(np.stack([beam, sample], axis=1) * 16.0).astype(np.int32)
            cv2.polylines(layer, [points[:, None, :]], False, 255, 2, cv2.LINE_AA, 4)
        soft = cv2.GaussianBlur(layer, (0, 0), sigmaX=self.settings.beam_width, sigmaY=0.9)
        return np.asarray(soft.astype(np.float32) * np.float32(_VALVE_ECHO / 255.0))

    def _display(self, amplitude: Float) -> npt.NDArray[np.uint8]:
        import cv2

        settings = self.settings
        noise = self._noise_at() * (self._ranges[:, None, None] / np.float32(settings.depth_cm)) ** 2
        level = np.float32(10.0 ** (settings.noise_db / 20.0))
        amplitude = amplitude + level * (cv2.magnitude(noise[..., 0], noise[..., 1]) + np.float32(0.2))
        decibel = cv2.log(amplitude) * np.float32(20.0 / np.log(10.0))
        grey = np.clip(1.0 + (decibel - np.float32(settings.gain_db)) / np.float32(settings.range_db), 0.0, 1.0)
        polar = np.rint(255.0 * cv2.pow(grey, settings.gamma)).astype(np.uint8)
        beam, sample = self._layout
        image = cv2.remap(polar, beam, sample, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        burn_label(image)
        return np.asarray(image, dtype=np.uint8)


def burn_label(image: npt.NDArray[np.uint8]) -> None:
    """Write ``SYNTHETIC`` into the top left corner, outside the sector."""
    left = 2
    for letter in LABEL:
        glyph = np.array([[mark == "#" for mark in row] for row in _GLYPHS[letter]])
        image[2:7, left : left + 3][glyph] = _LABEL_GREY
        left += 4
