"""`Clip`: one recorded view of a patient: its scanner settings, timing, key frames and pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedstore.identity import derive_seed
from embedstore.phantom.heart import CardiacCycle, Patient
from embedstore.phantom.motion import Placement, plane_of
from embedstore.phantom.scanner import Scanner, Settings
from embedstore.phantom.tissue import LONG_AXIS_WALLS, paint

__all__ = ["Clip", "plan_clip"]

FRAME_RATES_HZ = (25, 30, 40, 50, 60)
MIN_FRAMES, MAX_FRAMES = 32, 64
MIN_BEATS = 1.5
_SIZES = ((140, 112), (150, 120), (160, 128))
_MACHINES = ("SYNTHETIC-A", "SYNTHETIC-B", "SYNTHETIC-C")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip, not yet drawn.

    Attributes
    ----------
    fps, n_frames, starts_s
        Frame rate, frames, and where in the beat the first frame lies, in seconds from end-diastole.
    breathing : (float, float, float)
        Amplitude in cm across and along the depth, and phase, of the heart's sway.
    """

    patient: Patient
    view: str
    seed: int
    manufacturer: str
    fps: int
    n_frames: int
    starts_s: float
    settings: Settings
    placement: Placement
    breathing: tuple[float, float, float]

    @property
    def clip_id(self) -> str:
        """Id, e.g. ``phantom-p0000-a4c``."""
        return f"{self.patient.patient_id}-{self.view.lower()}"

    @property
    def times_s(self) -> npt.NDArray[np.float64]:
        """Time of each frame after an end-diastole."""
        return np.asarray(self.starts_s + np.arange(self.n_frames) / self.fps)

    @property
    def activations(self) -> npt.NDArray[np.floating]:
        """Activation in each frame."""
        return CardiacCycle(self.patient.heart_rate_bpm).activation(self.times_s)

    @property
    def volumes_ml(self) -> npt.NDArray[np.floating]:
        """Left ventricular volume in each frame."""
        return self.patient.ventricle.volume_ml(self.activations)

    @property
    def shows_defect(self) -> bool:
        """Whether the hypokinetic wall, if there is one, lies in this plane."""
        wall = self.patient.ventricle.hypokinetic_wall
        return wall is not None and (self.view == "PSAX" or wall in LONG_AXIS_WALLS[self.view])

    def key_frames(self) -> dict[str, int]:
        """Return the frame of each role: the first at the largest volume, and the next at the smallest.

        PLAX clips add the linear measurements, which are of end-diastole.
        """
        volumes = np.round(self.volumes_ml, 6)
        ed = int(np.flatnonzero(volumes == volumes.max())[0])
        smallest = np.flatnonzero(volumes == volumes.min())
        es = int(smallest[smallest > ed][0])
        measured = dict.fromkeys(("lvidd", "ivsd", "lvpwd"), ed) if self.view == "PLAX" else {}
        return {"ed": ed, "es": es, **measured}

    def draw(self) -> npt.NDArray[np.uint8]:
        """Return the frames, (T, H, W) uint8."""
        seed = derive_seed("phantom", self.seed, "pixels", self.patient.number, self.view)
        scanner = Scanner(self.settings, np.random.default_rng(seed))
        tissue = paint(self.patient, self.view)
        scatterers = scanner.scatterers(tissue)
        plane = plane_of(self.patient, self.view, self.placement)
        cycle, times_s = CardiacCycle(self.patient.heart_rate_bpm), self.times_s
        across_cm, deep_cm, phase = self.breathing
        # A quiet breath takes four seconds.
        breath = np.sin(2 * np.pi * times_s / 4.0 + phase)
        frames = [
            scanner.frame(
                plane,
                tissue,
                scatterers,
                activation=float(activation),
                valves=(float(mitral), float(aortic)),
                sway_cm=(float(across_cm * shift), float(deep_cm * shift)),
            )
            for activation, mitral, aortic, shift in zip(
                self.activations, cycle.mitral_opening(times_s), cycle.aortic_opening(times_s), breath, strict=True
            )
        ]
        return np.stack(frames)


def _place(patient: Patient, view: str, rng: np.random.Generator) -> tuple[Placement, float]:
    """Return where the heart lies, and the depth that shows it, in cm.

    Depth follows the size at mid-beat, not at end-diastole, which would tell the ejection fraction.
    """
    ventricle = patient.ventricle
    size = float(ventricle.volume_ml(0.45) / ventricle.volume_ml(0.0)) ** (1.0 / 3.0)
    length, radius = ventricle.length_cm * size, ventricle.radius_cm * size
    walls = ventricle.septum_cm + ventricle.posterior_cm
    slack = float(rng.uniform(1.0, 1.12))
    if view == "PSAX":
        y_cm = 1.5 + 0.55 * patient.right_width_cm + ventricle.septum_cm + radius
        return Placement(float(rng.normal(0.6, 0.4)), y_cm, float(rng.normal(0.0, 8.0))), slack * (
            y_cm + radius + ventricle.posterior_cm + 2.0
        )
    if view == "PLAX":
        y_cm = 1.6 + 0.75 * patient.right_width_cm + walls / 2 + radius
        tilt_deg = 90.0 + float(rng.normal(4.0, 5.0))
        # The axis passes at depth y_cm where the mitral valve is, at 0.8 of the length, a little right of the middle.
        reach = 0.85 * length
        x_cm = float(rng.normal(0.3, 0.4)) - reach * np.sin(np.radians(tilt_deg))
        apex_y = y_cm - reach * np.cos(np.radians(tilt_deg))
        return Placement(float(x_cm), float(apex_y), tilt_deg), slack * (y_cm + radius + walls / 2 + 3.3)
    y_cm = float(rng.uniform(1.9, 2.6))
    tilt_deg = float(rng.normal(-3.0 if view == "A4C" else 0.0, 3.0))
    x_cm = float(rng.normal(1.7 if view == "A4C" else 0.2, 0.3))
    return Placement(x_cm, y_cm, tilt_deg), slack * (y_cm + length + 1.75 * patient.atrium_length_cm)


def plan_clip(patient: Patient, view: str, *, seed: int = 0) -> Clip:
    """Draw everything about a clip but its pixels; settings and timing do not depend on the ejection fraction."""
    rng = np.random.default_rng(derive_seed("phantom", seed, "clip", patient.number, view))
    period_s = CardiacCycle(patient.heart_rate_bpm).period_s
    rates = [rate for rate in FRAME_RATES_HZ if np.ceil(MIN_BEATS * period_s * rate) + 1 <= MAX_FRAMES]
    fps = int(rates[int(rng.integers(len(rates)))])
    shortest = max(MIN_FRAMES, int(np.ceil(MIN_BEATS * period_s * fps)) + 1)
    placement, depth_cm = _place(patient, view, rng)
    width, height = _SIZES[int(rng.integers(len(_SIZES)))]
    machine = int(rng.integers(len(_MACHINES)))
    settings = Settings(
        width=width,
        height=height,
        depth_cm=round(depth_cm, 1),
        half_angle_deg=float(rng.uniform(37.0, 41.0)),
        gain_db=float(4.0 - patient.window_db + rng.normal(0.0, 2.0)),
        range_db=(48.0, 50.0, 53.0)[machine] + float(rng.normal(0.0, 1.5)),
        attenuation_db_per_cm=float(rng.uniform(0.0, 0.5)),
        noise_db=float(rng.uniform(-50.0, -41.0)),
        gamma=(1.1, 1.2, 1.3)[machine],
        beam_width=(1.2, 1.0, 1.4)[machine],
    )
    return Clip(
        patient=patient,
        view=view,
        seed=seed,
        manufacturer=_MACHINES[machine],
        fps=fps,
        n_frames=int(rng.integers(shortest, min(MAX_FRAMES, shortest + 10) + 1)),
        starts_s=float(rng.uniform(0.0, period_s)),
        settings=settings,
        placement=placement,
        breathing=(float(rng.uniform(0.0, 0.1)), float(rng.uniform(0.0, 0.15)), float(rng.uniform(0.0, 2 * np.pi))),
    )
