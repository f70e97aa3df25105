"""`Patient`: a synthetic left ventricle over the cardiac cycle. Every label follows from the geometry that is drawn.

The cavity is a solid whose cross-sections, perpendicular to the long axis, are the closed curves
``r(theta, s, a)``: ``theta`` is the angle around the short axis, ``s`` the level from apex (0) to mitral plane (1)
and ``a`` the activation, 0 at end-diastole and 1 at end-systole::

    r(theta, s, a) = R * p(s) * (1 - f * a * m(theta, s))        R, f: radius at end-diastole, radial shortening
    p(s) = sqrt(1 - ((s_max - s) / s_max)**2)                     an ellipse, widest at s_max, cut off at the base
    L(a) = L * (1 - g * a)                                        the base moves towards a still apex
    V(a) = L(a) * integral over s and theta of r**2 / 2           cm^3 = mL

``m`` is 1, but less in a hypokinetic wall. Without one, V is the volume of a truncated prolate ellipsoid. The
myocardium is incompressible, so walls thicken as they move in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from embedstore.identity import derive_seed

__all__ = ["VIEWS", "WALLS", "CardiacCycle", "Patient", "Ventricle", "draw_patient"]

VIEWS = ("A4C", "A2C", "PLAX", "PSAX")

# The six walls of the 17-segment model, by the angle of their middle in a short-axis image seen from the apex:
# degrees from image right, anticlockwise (Cerqueira et al., Circulation 2002;105:539).
WALLS = {
    "anterolateral": 30.0,
    "anterior": 90.0,
    "anteroseptal": 150.0,
    "inferoseptal": 210.0,
    "inferior": 270.0,
    "inferolateral": 330.0,
}
SEPTUM_DEG = 180.0

# Level of the largest short axis, and of the linear measurements in PLAX (at the tips of the mitral leaflets).
WIDEST_LEVEL = 0.62
MEASURED_LEVEL = 0.75

Array = npt.NDArray[np.floating]


def profile(level: Array | float) -> Array:
    """Return ``p(s)``, the radius at a level as a share of the largest."""
    inner = 1.0 - ((WIDEST_LEVEL - np.clip(level, 0.0, 1.0)) / WIDEST_LEVEL) ** 2
    return np.asarray(np.sqrt(np.maximum(inner, 0.0)))


@dataclass(frozen=True)
class CardiacCycle:
    """Timing of one beat, from end-diastole on.

    Isovolumic contraction and relaxation hold the volume for 50 and 75 ms, which is longer than the frame interval
    at 25 frames per second: some frame of every beat shows exactly the end-diastolic and the end-systolic volume.

    Parameters
    ----------
    heart_rate_bpm : float
        From 40 to 120.

    Examples
    --------
    >>> cycle = CardiacCycle(60.0)
    >>> cycle.activation(np.array([0.0, 0.04, 0.37, 0.42, 1.0])).round(3).tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0]
    """

    heart_rate_bpm: float

    contraction_s = 0.050
    relaxation_s = 0.075

    @property
    def period_s(self) -> float:
        """Length of a beat."""
        return 60.0 / self.heart_rate_bpm

    @property
    def ejection_s(self) -> float:
        """Left ventricular ejection time: 413 - 1.7 HR ms (Weissler et al., Circulation 1968;37:149, men)."""
        return 0.413 - 0.0017 * self.heart_rate_bpm

    @property
    def filling_starts_s(self) -> float:
        """When the mitral valve opens."""
        return self.contraction_s + self.ejection_s + self.relaxation_s

    def _filling(self, time_s: Array) -> tuple[Array, Array, Array]:
        filling = np.mod(time_s, self.period_s) - self.filling_starts_s
        length = self.period_s - self.filling_starts_s
        early = np.clip(filling / (0.5 * length), 0.0, 1.0)
        atrial = np.clip((filling - 0.7 * length) / (0.3 * length), 0.0, 1.0)
        return filling, early, atrial

    def activation(self, time_s: Array) -> Array:
        """Return the activation at ``time_s`` seconds: ejection, early filling (3/4 of it), atrial kick."""
        phase = np.mod(time_s, self.period_s)
        ejected = 0.5 - 0.5 * np.cos(np.pi * np.clip((phase - self.contraction_s) / self.ejection_s, 0.0, 1.0))
        _, early, atrial = self._filling(time_s)
        filled = 0.75 * (0.5 - 0.5 * np.cos(np.pi * early)) + 0.25 * (0.5 - 0.5 * np.cos(np.pi * atrial))
        return np.asarray(np.clip(ejected - filled, 0.0, 1.0))

    def mitral_opening(self, time_s: Array) -> Array:
        """Return how far the mitral valve is open, 0 to 1: wide early and at the atrial kick, half between."""
        filling, early, atrial = self._filling(time_s)
        flow = np.maximum(np.sin(np.pi * early), 0.7 * np.sin(np.pi * atrial))
        return np.asarray(np.where(filling > 0, np.clip(0.3 + flow, 0.0, 1.0) * _ramp(filling / 0.03), 0.0))

    def aortic_opening(self, time_s: Array) -> Array:
        """Return how far the aortic valve is open, 0 to 1."""
        ejecting = np.mod(time_s, self.period_s) - self.contraction_s
        return _ramp(ejecting / 0.03) * _ramp((self.ejection_s - ejecting) / 0.03)


def _ramp(value: Array) -> Array:
    return np.asarray(np.clip(value, 0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class Ventricle:
    """The left ventricle.

    Attributes
    ----------
    radius_cm, length_cm : float
        Largest cavity radius and cavity length at end-diastole.
    septum_cm, posterior_cm : float
        Wall thickness at end-diastole at the middle of the septum and opposite to it.
    radial_shortening, axial_shortening : float
        ``f`` and ``g`` of the module's formula.
    hypokinetic_wall : str or None
        A name of `WALLS`.
    residual_motion : float
        ``m`` in the middle of the hypokinetic wall.
    """

    radius_cm: float
    length_cm: float
    septum_cm: float
    posterior_cm: float
    radial_shortening: float
    axial_shortening: float
    hypokinetic_wall: str | None = None
    residual_motion: float = 1.0

    def motion(self, theta_deg: Array | float, level: Array | float) -> Array:
        """Return ``m``: how much of the normal inward motion there is. The defect spans basal and middle levels."""
        return _motion(theta_deg, level, self.hypokinetic_wall, self.residual_motion)

    def radius(self, theta_deg: Array | float, level: Array | float, activation: float) -> Array:
        """Return the cavity radius in cm."""
        moved = self.radial_shortening * activation * self.motion(theta_deg, level)
        return np.asarray(self.radius_cm * profile(level) * (1.0 - moved))

    def length(self, activation: float) -> float:
        """Return the length of the long axis in cm."""
        return self.length_cm * (1.0 - self.axial_shortening * activation)

    def wall(self, theta_deg: Array | float, level: Array | float) -> Array:
        """Return the wall thickness at end-diastole in cm; the apex is thinner."""
        septal = 0.5 + 0.5 * np.cos(np.radians(np.asarray(theta_deg, dtype=np.float64) - SEPTUM_DEG))
        equator = self.posterior_cm + (self.septum_cm - self.posterior_cm) * septal
        return np.asarray(equator * (0.6 + 0.4 * _smooth(np.asarray(level) / 0.4)))

    def volume_ml(self, activation: Array | float) -> Array:
        """Return ``V(a)`` in mL (the integrals are sums over 200 levels and 180 angles)."""
        still, linear, square = _motion_moments(self.hypokinetic_wall, self.residual_motion)
        moved = self.radial_shortening * np.asarray(activation, dtype=np.float64)
        area = self.radius_cm**2 * (still - 2.0 * moved * linear + moved**2 * square)
        shortened = 1.0 - self.axial_shortening * np.asarray(activation, dtype=np.float64)
        return np.asarray(self.length_cm * shortened * area)

    @property
    def edv_ml(self) -> float:
        """End-diastolic volume."""
        return float(self.volume_ml(0.0))

    @property
    def esv_ml(self) -> float:
        """End-systolic volume."""
        return float(self.volume_ml(1.0))

    @property
    def lvef_pct(self) -> float:
        """Ejection fraction, 100 (EDV - ESV) / EDV."""
        return 100.0 * (self.edv_ml - self.esv_ml) / self.edv_ml

    @property
    def lvidd_cm(self) -> float:
        """Inner diameter at end-diastole in the PLAX plane at the measured level."""
        sides = np.array([WALLS["anteroseptal"], WALLS["inferolateral"]])
        return float(self.radius(sides, MEASURED_LEVEL, 0.0).sum())

    @property
    def ivsd_cm(self) -> float:
        """Septal thickness at end-diastole in the PLAX plane at the measured level."""
        return float(self.wall(WALLS["anteroseptal"], MEASURED_LEVEL))

    @property
    def lvpwd_cm(self) -> float:
        """Posterior wall thickness at end-diastole in the PLAX plane at the measured level."""
        return float(self.wall(WALLS["inferolateral"], MEASURED_LEVEL))


def _motion(theta_deg: Array | float, level: Array | float, wall: str | None, residual: float) -> Array:
    theta, level = np.asarray(theta_deg, dtype=np.float64), np.asarray(level, dtype=np.float64)
    if wall is None:
        return np.ones(np.broadcast_shapes(theta.shape, level.shape))
    off_deg = np.abs(np.mod(theta - WALLS[wall] + 180.0, 360.0) - 180.0)
    around = _smooth((55.0 - off_deg) / 40.0)
    along = _smooth((level - 0.25) / 0.2)
    return np.asarray(1.0 - (1.0 - residual) * around * along)


@lru_cache(maxsize=1024)
def _motion_moments(wall: str | None, residual: float) -> tuple[float, float, float]:
    """Return the integrals of ``p**2 * m**k / 2`` over level and angle for k = 0, 1, 2."""
    level = (np.arange(200) + 0.5) / 200.0
    theta_deg = np.arange(180) * 2.0
    motion = _motion(theta_deg[None, :], level[:, None], wall, residual)
    area = profile(level)[:, None] ** 2
    still, linear, square = (float((area * motion**power).mean() * np.pi) for power in range(3))
    return still, linear, square


def _smooth(value: Array) -> Array:
    clipped = np.clip(value, 0.0, 1.0)
    return np.asarray(clipped * clipped * (3.0 - 2.0 * clipped))


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One synthetic patient: the ventricle, what surrounds it, and facts for the table.

    Attributes
    ----------
    patient_id, study_id : str
    sex : str
        ``F`` or ``M``; like age and site, drawn independently of the heart.
    ventricle : Ventricle
    right_width_cm, atrium_length_cm, atrium_width_cm : float
        Widest right ventricle, and semi-axes of the left atrium.
    window_db : float
        How well this patient transmits ultrasound, 0 the median.
    views : tuple of str
        Views that were recorded; A4C always.
    """

    number: int
    patient_id: str
    study_id: str
    sex: str
    age_years: int
    site: str
    heart_rate_bpm: float
    ventricle: Ventricle
    right_width_cm: float
    atrium_length_cm: float
    atrium_width_cm: float
    window_db: float
    views: tuple[str, ...]


def _contracting_to(lvef_pct: float, ventricle: Ventricle, axial_ratio: float) -> Ventricle:
    """Find the shortening that gives an ejection fraction; a bisection to double precision."""
    low, high = 0.0, 0.8
    for _ in range(60):
        middle = 0.5 * (low + high)
        tried = replace(ventricle, radial_shortening=middle, axial_shortening=axial_ratio * middle)
        low, high = (middle, high) if tried.lvef_pct < lvef_pct else (low, middle)
    return replace(ventricle, radial_shortening=low, axial_shortening=axial_ratio * low)


def _sized_at_mid_beat(mean_size_ml: float, ventricle: Ventricle, cycle: CardiacCycle) -> Ventricle:
    """Scale the cavity, and thin or thicken its walls, so that size and walls are as given in the middle of a beat.

    With these drawn independently of the ejection fraction, a time-averaged picture does not tell the ejection
    fraction: only motion does. A cavity's area in any view goes with volume to the power 2/3, so ``mean_size_ml``
    is that of a still heart with the mean area; thicknesses are taken where the activation is its mean.
    """
    beat = cycle.activation(np.linspace(0.0, cycle.period_s, 400, endpoint=False))
    mean_area = float((ventricle.volume_ml(beat) ** (2.0 / 3.0)).mean())
    scale = (mean_size_ml ** (2.0 / 3.0) / mean_area) ** 0.5
    radius = ventricle.radius_cm * scale
    middle = float(beat.mean())
    now = radius * (1.0 - ventricle.radial_shortening * middle)
    shortened = 1.0 - ventricle.axial_shortening * middle

    def at_end_diastole(thickness_cm: float) -> float:
        ring = (now + thickness_cm) ** 2 - now**2
        return float(np.sqrt(radius**2 + ring * shortened) - radius)

    return replace(
        ventricle,
        radius_cm=radius,
        length_cm=ventricle.length_cm * scale,
        septum_cm=at_end_diastole(ventricle.septum_cm),
        posterior_cm=at_end_diastole(ventricle.posterior_cm),
    )


def draw_patient(number: int, *, seed: int = 0) -> Patient:
    """Draw patient ``number``: the same for one seed, however many others there are.

    Ejection fraction is uniform from 20 to 75 %; mid-beat size and wall thickness, heart rate, a wall-motion
    defect (one patient in three), sex, age and site are drawn independently of it. In life they are not.

    Examples
    --------
    >>> patient = draw_patient(0)
    >>> patient.patient_id, 20 <= patient.ventricle.lvef_pct <= 75, patient.views
    ('phantom-p0000', True, ('A4C', 'A2C', 'PLAX', 'PSAX'))
    """
    rng = np.random.default_rng(derive_seed("phantom", seed, "patient", number))
    lvef_pct = rng.uniform(20.0, 75.0)
    mean_size_ml = 85.0 * np.exp(np.clip(rng.normal(0.0, 0.25), -0.55, 0.55))
    heart_rate_bpm = round(float(rng.uniform(54.0, 100.0)), 1)
    mean_wall_cm = rng.uniform(0.85, 1.45)
    asymmetry_cm = np.clip(rng.normal(0.05, 0.1), -0.1, 0.3)
    is_defective = rng.random() < 1.0 / 3.0
    wall = list(WALLS)[int(rng.integers(len(WALLS)))]
    residual = float(rng.uniform(0.0, 0.25))
    still = Ventricle(
        radius_cm=1.0,
        length_cm=2.0 * float(rng.uniform(1.55, 1.95)),
        septum_cm=float(mean_wall_cm + asymmetry_cm / 2),
        posterior_cm=float(mean_wall_cm - asymmetry_cm / 2),
        radial_shortening=0.0,
        axial_shortening=0.0,
        hypokinetic_wall=wall if is_defective else None,
        residual_motion=residual if is_defective else 1.0,
    )
    contracting = _contracting_to(lvef_pct, still, float(rng.uniform(0.35, 0.5)))
    n_others = 3 if number == 0 else int(rng.choice(3, p=(0.2, 0.65, 0.15))) + 1
    others = sorted(rng.permutation(len(VIEWS) - 1)[:n_others] + 1)
    return Patient(
        number=number,
        patient_id=f"phantom-p{number:04d}",
        study_id=f"phantom-s{number:04d}",
        sex="FM"[int(rng.integers(2))],
        age_years=int(rng.integers(25, 86)),
        site=f"phantom-site-{int(rng.integers(1, 4))}",
        heart_rate_bpm=heart_rate_bpm,
        ventricle=_sized_at_mid_beat(mean_size_ml, contracting, CardiacCycle(heart_rate_bpm)),
        right_width_cm=float(rng.uniform(2.2, 3.2)),
        atrium_length_cm=float(rng.uniform(2.0, 2.9)),
        atrium_width_cm=float(rng.uniform(1.7, 2.3)),
        window_db=float(rng.normal(0.0, 1.5)),
        views=(VIEWS[0], *(VIEWS[place] for place in others)),
    )
