"""Echogenicity at end-diastole: how strongly each point of an image plane scatters.

Each view is painted from back to front in the coordinates of the left ventricle, in cm: for the long-axis views
``q`` across the long axis and ``z`` along it (apex 0, mitral plane at the cavity's length), for the short axis ``q``
to image right and ``z`` up from the cavity's centre. The left ventricle is exact; what surrounds it is only alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedstore.phantom.heart import WALLS, Patient, profile

__all__ = ["ECHO", "LONG_AXIS_WALLS", "SHORT_AXIS_LEVEL", "TissueMap", "paint"]

Array = npt.NDArray[np.floating]

# Wall at negative and positive q of each long-axis view: left and right of an apical, top and bottom of a
# parasternal image.
LONG_AXIS_WALLS = {
    "A4C": ("inferoseptal", "anterolateral"),
    "A2C": ("inferior", "anterior"),
    "PLAX": ("anteroseptal", "inferolateral"),
}
SHORT_AXIS_LEVEL = 0.6

# Backscattered amplitude, 1 being a bright fibrous surface; chosen by eye.
ECHO = {
    "blood": 0.005,
    "lung": 0.014,
    "fat": 0.06,
    "myocardium": 0.15,
    "atrial wall": 0.17,
    "papillary": 0.22,
    "vessel": 0.42,
    "annulus": 0.62,
    "pericardium": 1.0,
}
_EDGE_CM = 0.12
_SPACING_CM = 0.06


@dataclass(frozen=True)
class TissueMap:
    """Echogenicity on a grid of the reference plane.

    Attributes
    ----------
    echo : (rows, columns) float32
        Rows along ``z``, columns along ``q``.
    q_min_cm, z_min_cm : float
        Position of the first row and column.
    spacing_cm : float
        Grid distance.
    """

    echo: npt.NDArray[np.float32]
    q_min_cm: float
    z_min_cm: float
    spacing_cm: float = _SPACING_CM


class _Canvas:
    """A grid that masks are painted on; a mask is given by signed distances in cm, negative inside."""

    def __init__(self, q_range: tuple[float, float], z_range: tuple[float, float]) -> None:
        self.q = np.arange(*q_range, _SPACING_CM, dtype=np.float32)[None, :]
        self.z = np.arange(*z_range, _SPACING_CM, dtype=np.float32)[:, None]
        self.echo: Array = np.full((self.z.size, self.q.size), ECHO["lung"], dtype=np.float32)

    def fill(self, distance: Array, tissue: str) -> None:
        inside = np.clip(0.5 - distance / _EDGE_CM, 0.0, 1.0)
        self.echo = self.echo + inside * (ECHO[tissue] - self.echo)

    def band(self, distance: Array, tissue: str, *, width_cm: float, strength: Array | float = 1.0) -> None:
        """Paint a bright line along distance 0."""
        line = np.exp(-0.5 * (distance / (0.5 * width_cm)) ** 2) * strength
        self.echo = np.maximum(self.echo, ECHO[tissue] * line)

    def spot(self, q_cm: float, z_cm: float, tissue: str, *, radius_cm: float) -> None:
        self.band(np.hypot(self.q - q_cm, self.z - z_cm), tissue, width_cm=2 * radius_cm)

    def ellipse(self, q_cm: float, z_cm: float, q_radius_cm: float, z_radius_cm: float) -> Array:
        """Return the signed distance to an ellipse, near enough."""
        share = np.hypot((self.q - q_cm) / q_radius_cm, (self.z - z_cm) / z_radius_cm)
        return np.asarray((share - 1.0) * min(q_radius_cm, z_radius_cm))


@dataclass(frozen=True)
class _LongAxisOutline:
    """Signed distances of the left ventricle in a long-axis plane."""

    cavity: Array
    outer: Array
    beyond_left: Array
    beyond_right: Array
    level: Array
    base_radius_cm: float

    @classmethod
    def of(cls, patient: Patient, view: str, canvas: _Canvas) -> _LongAxisOutline:
        ventricle = patient.ventricle
        left, right = (WALLS[name] for name in LONG_AXIS_WALLS[view])
        raw_level = canvas.z / ventricle.length_cm
        level = np.clip(raw_level, 0.0, 1.0)
        radius = ventricle.radius_cm * profile(level)
        beyond_left = -canvas.q - radius - ventricle.wall(left, level)
        beyond_right = canvas.q - radius - ventricle.wall(right, level)
        cavity = np.maximum(np.abs(canvas.q) - radius, np.maximum(-canvas.z, canvas.z - ventricle.length_cm))
        # The cap over the apex is half an ellipse as high as the wall there is thick.
        apex_cm = float(ventricle.wall(right, 0.0))
        side_cm = np.where(canvas.q < 0, ventricle.wall(left, 0.0), ventricle.wall(right, 0.0))
        cap = np.hypot(canvas.q * apex_cm / side_cm, canvas.z) - apex_cm
        sides = np.maximum(np.maximum(beyond_left, beyond_right), canvas.z - ventricle.length_cm - 0.1)
        outer = np.where(canvas.z < 0, cap, sides)
        base_cm = float(ventricle.radius_cm * profile(1.0))
        return cls(cavity, outer, beyond_left, beyond_right, level, base_cm)


def _paint_apical(patient: Patient, view: str) -> _Canvas:
    ventricle = patient.ventricle
    canvas = _Canvas((-11.0, 9.0), (-5.0, 17.0))
    outline = _LongAxisOutline.of(patient, view, canvas)
    length, base = ventricle.length_cm, outline.base_radius_cm
    atrium_q, atrium_z = base * 1.18 + 0.25 * (patient.atrium_width_cm - 2.0), patient.atrium_length_cm
    left_atrium = canvas.ellipse(0.0, length + 0.72 * atrium_z, atrium_q, atrium_z)
    below = length - 0.1 - canvas.z
    heart = outline.outer
    if view == "A4C":
        width = patient.right_width_cm * np.sqrt(np.clip(1.0 - ((outline.level - 0.88) / 0.72) ** 2, 0.0, 1.0))
        plane_cm = 0.93 * length
        right_ventricle = np.maximum(outline.beyond_left - width, canvas.z - plane_cm)
        right_outer = np.maximum(np.maximum(right_ventricle - 0.4, canvas.z - length), canvas.q)
        heart = np.minimum(heart, np.where(canvas.z > 0.12 * length, right_outer, 9.0))
        septum_q = -base - float(ventricle.wall(WALLS["inferoseptal"], 1.0))
        right_q = septum_q - 0.5 * patient.right_width_cm + 0.1
        right_atrium = canvas.ellipse(right_q, plane_cm + 0.72 * atrium_z, 0.62 * patient.right_width_cm, atrium_z)
        canvas.fill(np.minimum(heart, np.minimum(left_atrium, right_atrium)) - 0.9, "fat")
        canvas.fill(np.maximum(right_atrium - 0.3, plane_cm - 0.1 - canvas.z), "atrial wall")
        # The septum between the atria, thin in its middle.
        middle = np.abs(canvas.q - 0.5 * (septum_q - atrium_q)) - 0.5 * (-atrium_q - septum_q) - 0.1
        canvas.fill(np.maximum(middle, np.maximum(below, canvas.z - length - 1.6 * atrium_z)), "atrial wall")
    else:
        canvas.fill(np.minimum(heart, left_atrium) - 0.8, "fat")
    canvas.fill(np.maximum(left_atrium - 0.3, below), "atrial wall")
    lateral = np.clip(0.55 + 0.25 * canvas.q / ventricle.radius_cm, 0.3, 1.0)
    canvas.band(np.where(canvas.z < length, heart - 0.12, 9.0), "pericardium", width_cm=0.26, strength=lateral)
    canvas.band(
        np.where(canvas.z > length + atrium_z, left_atrium - 0.25, 9.0), "pericardium", width_cm=0.3, strength=0.8
    )
    canvas.fill(heart, "myocardium")
    canvas.fill(outline.cavity, "blood")
    canvas.fill(np.maximum(left_atrium, below), "blood")
    canvas.spot(-base - 0.1, length, "annulus", radius_cm=0.28)
    canvas.spot(base + 0.1, length, "annulus", radius_cm=0.32)
    if view == "A4C":
        inside = np.maximum(np.maximum(right_ventricle, -outline.beyond_left), 0.14 * length - canvas.z)
        canvas.fill(inside, "blood")
        canvas.fill(np.maximum(right_atrium, plane_cm - 0.1 - canvas.z), "blood")
        canvas.spot(septum_q - 0.1, plane_cm, "annulus", radius_cm=0.25)
        canvas.spot(septum_q - patient.right_width_cm, plane_cm, "annulus", radius_cm=0.28)
    return canvas


def _paint_parasternal_long(patient: Patient) -> _Canvas:
    ventricle = patient.ventricle
    canvas = _Canvas((-9.0, 11.0), (-5.0, 17.0))
    outline = _LongAxisOutline.of(patient, "PLAX", canvas)
    length, base = ventricle.length_cm, outline.base_radius_cm
    septal_cm = float(ventricle.wall(WALLS["anteroseptal"], 1.0))
    posterior_cm = float(ventricle.wall(WALLS["inferolateral"], 1.0))
    root_top, root_bottom = -base - 0.5 * septal_cm, -base - 0.5 * septal_cm + 2.5
    width = 0.75 * patient.right_width_cm * np.clip(1.15 - 0.35 * np.abs(outline.level - 0.8), 0.5, 1.0)
    root_end = length + 3.6
    above = np.where(canvas.z < length, outline.beyond_left, root_top - 0.2 - canvas.q)
    right_ventricle = np.maximum(above - width, -above)
    right_ventricle = np.maximum(right_ventricle, np.maximum(0.1 * length - canvas.z, canvas.z - root_end))
    atrium_q = patient.atrium_width_cm
    atrium_middle = root_bottom + 0.1 + 0.95 * atrium_q
    left_atrium = canvas.ellipse(atrium_middle, length + 1.05 * patient.atrium_length_cm, atrium_q, 2.5)
    root_side = np.abs(canvas.q - 0.5 * (root_top + root_bottom)) - 0.5 * (root_bottom - root_top)
    root_inner = np.maximum(root_side, np.maximum(length - 0.4 - canvas.z, canvas.z - root_end))
    descending = canvas.ellipse(base + posterior_cm + 2.2, length + 0.6, 0.95, 0.95)
    canvas.fill(np.minimum(outline.outer, right_ventricle) - 0.9, "fat")
    canvas.fill(right_ventricle - 0.4, "myocardium")
    canvas.fill(left_atrium - 0.3, "atrial wall")
    canvas.fill(outline.outer, "myocardium")
    behind = np.where(canvas.q > 0, outline.beyond_right, 9.0)
    along = np.clip(1.3 - 0.35 * np.abs(canvas.z - 0.8 * length), 0.35, 1.0)
    canvas.band(np.where(canvas.z < length, behind - 0.14, 9.0), "pericardium", width_cm=0.34, strength=along)
    canvas.band(np.where(canvas.q > atrium_middle, left_atrium - 0.25, 9.0), "pericardium", width_cm=0.28)
    canvas.band(np.where(root_inner < 2.0, descending, 9.0), "vessel", width_cm=0.25)
    canvas.fill(descending, "blood")
    canvas.fill(np.maximum(left_atrium, length - 0.1 - canvas.z), "blood")
    canvas.fill(right_ventricle, "blood")
    canvas.fill(outline.cavity, "blood")
    canvas.fill(root_inner, "blood")
    tube = np.clip((canvas.z - length + 0.3) / 0.6, 0.0, 1.0) * np.clip((root_end - canvas.z) / 2.0, 0.0, 1.0)
    canvas.band(root_side, "vessel", width_cm=0.24, strength=tube)
    canvas.spot(base + 0.1, length, "annulus", radius_cm=0.32)
    canvas.spot(root_bottom, length, "annulus", radius_cm=0.22)
    return canvas


def _paint_short_axis(patient: Patient) -> _Canvas:
    ventricle = patient.ventricle
    canvas = _Canvas((-9.5, 8.5), (-9.0, 9.0))
    theta_deg = np.degrees(np.arctan2(canvas.z, canvas.q))
    distance = np.hypot(canvas.q, canvas.z)
    radius = float(ventricle.radius_cm * profile(SHORT_AXIS_LEVEL))
    wall = ventricle.wall(theta_deg, SHORT_AXIS_LEVEL)
    outer = distance - radius - wall
    # The right ventricle is a crescent: a larger circle, shifted up and left, less the left ventricle.
    right_radius = radius + ventricle.septum_cm + 0.15
    shift_cm = 0.75 * patient.right_width_cm + 0.3
    angle = np.radians(152.0)
    right_q, right_z = shift_cm * np.cos(angle), shift_cm * np.sin(angle)
    right_ventricle = canvas.ellipse(right_q, right_z, right_radius, right_radius)
    heart = np.minimum(outer, right_ventricle - 0.4)
    canvas.fill(heart - 0.7, "fat")
    facing = np.clip(0.55 - 0.55 * np.sin(np.radians(theta_deg + 25.0)), 0.15, 1.0)
    canvas.band(heart - 0.12, "pericardium", width_cm=0.3, strength=facing)
    canvas.fill(heart, "myocardium")
    canvas.fill(np.maximum(right_ventricle, -outer), "blood")
    canvas.band(np.where(right_ventricle < 0.2, outer, 9.0), "vessel", width_cm=0.15, strength=0.8)
    canvas.fill(distance - radius, "blood")
    for theta, size in ((-15.0, 0.27), (225.0, 0.3)):
        reach = radius * (1.0 - 0.75 * size)
        q_cm, z_cm = reach * np.cos(np.radians(theta)), reach * np.sin(np.radians(theta))
        muscle = canvas.ellipse(q_cm, z_cm, size * radius, size * radius)
        canvas.fill(np.maximum(muscle, distance - radius - 0.1), "papillary")
    # Walls along the beam scatter less towards the probe than walls across it.
    along = np.cos(np.radians(theta_deg)) ** 2 * np.clip(distance / radius, 0.0, 1.0)
    canvas.echo = canvas.echo * (1.0 - 0.6 * along)
    return canvas


def paint(patient: Patient, view: str) -> TissueMap:
    """Return the echogenicity of one view at end-diastole."""
    if view == "PSAX":
        canvas = _paint_short_axis(patient)
    elif view == "PLAX":
        canvas = _paint_parasternal_long(patient)
    else:
        canvas = _paint_apical(patient, view)
    return TissueMap(canvas.echo.astype(np.float32), float(canvas.q[0, 0]), float(canvas.z[0, 0]))
