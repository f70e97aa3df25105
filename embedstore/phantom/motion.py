"""Where tissue was at end-diastole: the backward map of each view, and the valves that are drawn on top.

Muscle is incompressible, so a point outside the cavity keeps its area: with radius ``r0`` at end-diastole, ``r`` now
and the plane's stretch ``k = L(a) / L``, a point at ``q`` came from ``sqrt(r0**2 + (q**2 - r**2) * k)``. Outside the
heart the displacement fades.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from embedstore.phantom.heart import WALLS, Patient, profile
from embedstore.phantom.tissue import LONG_AXIS_WALLS, SHORT_AXIS_LEVEL

__all__ = ["LongAxis", "Placement", "Plane", "ShortAxis", "plane_of"]

Array = npt.NDArray[np.floating]
_ATRIUM_FADE_CM = 4.0
_N_LEVELS = 1024


@dataclass(frozen=True)
class Placement:
    """Where the plane's origin lies in the sector, and how it is turned.

    Attributes
    ----------
    x_cm, y_cm : float
        Position of the apex (long axis) or the cavity's centre (short axis): x to image right of the probe, y depth.
    tilt_deg : float
        Direction of the long axis, from straight down towards image right; for the short axis the turn of the
        image, anticlockwise.
    """

    x_cm: float
    y_cm: float
    tilt_deg: float


class Plane(Protocol):
    """One view of one patient."""

    def from_sector(self, x_cm: Array, y_cm: Array) -> tuple[Array, Array]:
        """Turn sector positions into the plane's ``q`` and ``z``."""

    def at_end_diastole(self, q_cm: Array, z_cm: Array, activation: float) -> tuple[Array, Array]:
        """Return where what is now at ``q, z`` lies in the map of end-diastole."""

    def leaflets(self, activation: float, mitral: float, aortic: float) -> list[npt.NDArray[np.float64]]:
        """Return the valves as lines of (x, y) sector positions in cm."""


@dataclass(frozen=True)
class LongAxis:
    """A4C, A2C or PLAX."""

    patient: Patient
    view: str
    placement: Placement

    @property
    def _axes(self) -> tuple[float, float]:
        return float(np.cos(np.radians(self.placement.tilt_deg))), float(np.sin(np.radians(self.placement.tilt_deg)))

    @cached_property
    def _tables(self) -> tuple[Array, Array, Array]:
        """Radius, wall and motion by level, the left side and then the right."""
        ventricle, level = self.patient.ventricle, np.linspace(0.0, 1.0, _N_LEVELS)
        sides = [WALLS[name] for name in LONG_AXIS_WALLS[self.view]]
        columns = (
            [ventricle.radius(side, level, 0.0) for side in sides],
            [ventricle.wall(side, level) for side in sides],
            [ventricle.motion(side, level) for side in sides],
        )
        start, wall, motion = (np.concatenate(column).astype(np.float32) for column in columns)
        return start, wall, motion

    @property
    def _handedness(self) -> float:
        # Positive q is image right in apical views, and image bottom in PLAX, whose axis points right.
        return -1.0 if self.view == "PLAX" else 1.0

    def from_sector(self, x_cm: Array, y_cm: Array) -> tuple[Array, Array]:
        """Turn sector positions into ``q`` and ``z``."""
        cosine, sine = self._axes
        x, y = x_cm - self.placement.x_cm, y_cm - self.placement.y_cm
        return self._handedness * (x * cosine - y * sine), x * sine + y * cosine

    def _to_sector(self, points: list[tuple[float, float]]) -> npt.NDArray[np.float64]:
        cosine, sine = self._axes
        q, z = np.array(points, dtype=np.float64).T
        q = q * self._handedness
        return np.stack(
            [self.placement.x_cm + q * cosine + z * sine, self.placement.y_cm - q * sine + z * cosine], axis=1
        )

    def at_end_diastole(self, q_cm: Array, z_cm: Array, activation: float) -> tuple[Array, Array]:
        """Return where what is now at ``q, z`` lies in the map of end-diastole."""
        ventricle = self.patient.ventricle
        length, now = ventricle.length_cm, ventricle.length(activation)
        stretch = now / length
        below = np.maximum(z_cm - now, 0.0)
        z0 = np.where(z_cm < 0, z_cm, np.minimum(z_cm, now) / stretch) + below
        z0 += np.where(below > 0, (length - now) * np.expm1(-below / _ATRIUM_FADE_CM), 0.0)
        place = np.rint(np.clip(z0 / length, 0.0, 1.0) * (_N_LEVELS - 1)).astype(np.intp) + _N_LEVELS * (q_cm > 0)
        start, wall, motion = (table[place] for table in self._tables)
        moved = ventricle.radial_shortening * activation * motion * np.exp(-0.5 * below)
        return _radial(q_cm, start, start * (1.0 - moved), wall, stretch), np.asarray(z0, dtype=np.float32)

    def leaflets(self, activation: float, mitral: float, aortic: float) -> list[npt.NDArray[np.float64]]:
        """Return the valves as lines of (x, y) sector positions in cm."""
        ventricle = self.patient.ventricle
        length = ventricle.length(activation)
        left, right = (WALLS[name] for name in LONG_AXIS_WALLS[self.view])
        hinges = [sign * float(ventricle.radius(theta, 1.0, activation)) for sign, theta in ((-1, left), (1, right))]
        lines = []
        if self.view == "PLAX":
            septal_cm = float(ventricle.wall(left, 1.0))
            top = -float(ventricle.radius_cm * profile(1.0)) - 0.5 * septal_cm
            hinges[0] = top + 2.5
            for sign in (-1.0, 1.0):
                cusp = top + 1.25 + sign * (0.1 + 1.0 * aortic)
                lines.append([(top + 1.25 + sign * 1.2, length + 0.1), (cusp, length + 0.7), (cusp, length + 1.2)])
        middle = 0.5 * (hinges[0] + hinges[1])
        for hinge in hinges:
            closed, opened = middle, middle + 0.62 * (hinge - middle)
            tip = closed + mitral * (opened - closed), length - 0.55 - 1.35 * mitral
            knee = 0.45 * hinge + 0.55 * tip[0], length - 0.4 - 0.5 * mitral
            lines.append([(hinge, length), knee, tip])
        if self.view == "A4C":
            septum = hinges[0] - float(ventricle.wall(left, 1.0))
            width, plane = self.patient.right_width_cm, length * 0.93
            for hinge in (septum - 0.1, septum - 0.92 * width):
                middle = septum - 0.5 * width
                tip = middle + 0.55 * mitral * (hinge - middle), plane - 0.4 - 1.1 * mitral
                lines.append([(hinge, plane), (0.5 * (hinge + tip[0]), plane - 0.35 - 0.4 * mitral), tip])
        return [self._to_sector(line) for line in lines]


@dataclass(frozen=True)
class ShortAxis:
    """PSAX at the level of the papillary muscles."""

    patient: Patient
    placement: Placement

    def from_sector(self, x_cm: Array, y_cm: Array) -> tuple[Array, Array]:
        """Turn sector positions into ``q`` (image right) and ``z`` (up)."""
        cosine, sine = np.cos(np.radians(self.placement.tilt_deg)), np.sin(np.radians(self.placement.tilt_deg))
        x, up = x_cm - self.placement.x_cm, self.placement.y_cm - y_cm
        return (x * cosine + up * sine).astype(np.float32), (up * cosine - x * sine).astype(np.float32)

    def at_end_diastole(self, q_cm: Array, z_cm: Array, activation: float) -> tuple[Array, Array]:
        """Return where what is now at ``q, z`` lies in the map of end-diastole."""
        ventricle = self.patient.ventricle
        distance = np.hypot(q_cm, z_cm) + np.float32(1e-6)
        theta_deg = np.degrees(np.arctan2(z_cm, q_cm))
        start = (ventricle.radius_cm * profile(SHORT_AXIS_LEVEL)).astype(np.float32)
        now = ventricle.radius(theta_deg, SHORT_AXIS_LEVEL, activation).astype(np.float32)
        wall = ventricle.wall(theta_deg, SHORT_AXIS_LEVEL).astype(np.float32)
        stretch = ventricle.length(activation) / ventricle.length_cm
        share = _radial(distance, start, now, wall, stretch) / distance
        return q_cm * share, z_cm * share

    def leaflets(self, activation: float, mitral: float, aortic: float) -> list[npt.NDArray[np.float64]]:
        """Return no lines: no valve lies in this plane."""
        return []


def _radial(q_cm: Array, start: Array, now: Array, wall: Array, stretch: float) -> Array:
    """Undo inward motion along a ray: the cavity scales, the wall keeps its area, beyond it motion fades."""
    size = np.abs(q_cm)
    outer = start + wall
    outer_now = np.sqrt(now**2 + (outer**2 - start**2) / stretch)
    in_cavity = size * start / np.maximum(now, 1e-3)
    in_wall = np.sqrt(np.maximum(start**2 + (size**2 - now**2) * stretch, 0.0))
    beyond = np.sqrt(np.maximum(outer**2 + size**2 - outer_now**2, 0.0))
    came_from = np.where(size < now, in_cavity, np.where(size < outer_now, in_wall, beyond))
    return np.asarray(np.copysign(came_from, q_cm), dtype=np.float32)


def plane_of(patient: Patient, view: str, placement: Placement) -> Plane:
    """Return the plane of one view."""
    if view == "PSAX":
        return ShortAxis(patient, placement)
    return LongAxis(patient, view, placement)
