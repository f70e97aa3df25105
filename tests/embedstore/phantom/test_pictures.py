"""What is drawn is what the labels say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from embedstore.phantom.clip import Clip, plan_clip
from embedstore.phantom.heart import VIEWS, WALLS, Patient, draw_patient, profile
from embedstore.phantom.motion import Placement, plane_of
from embedstore.phantom.scanner import Scanner
from embedstore.phantom.tissue import ECHO, LONG_AXIS_WALLS, SHORT_AXIS_LEVEL, paint

PATIENTS = [draw_patient(number) for number in range(20)]
UNMOVED = Placement(0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def strong() -> Patient:
    return max(PATIENTS, key=lambda patient: patient.ventricle.lvef_pct)


@pytest.mark.parametrize("view", list(LONG_AXIS_WALLS))
@pytest.mark.parametrize("activation", [0.0, 0.5, 1.0])
def test_the_long_axis_map_takes_every_border_back_to_end_diastole(view: str, activation: float) -> None:
    for patient in PATIENTS[:6]:
        ventricle, plane = patient.ventricle, plane_of(patient, view, UNMOVED)
        level = np.linspace(0.1, 0.98, 30)
        for side, wall in zip((-1.0, 1.0), LONG_AXIS_WALLS[view], strict=True):
            q = side * ventricle.radius(WALLS[wall], level, activation)
            q0, z0 = plane.at_end_diastole(q, level * ventricle.length(activation), activation)
            assert z0 == pytest.approx(level * ventricle.length_cm, abs=1e-4)
            assert q0 == pytest.approx(side * ventricle.radius(WALLS[wall], level, 0.0), abs=0.02)


def test_the_short_axis_map_keeps_the_area_of_muscle(strong: Patient) -> None:
    plane = plane_of(strong, "PSAX", UNMOVED)
    axis = np.arange(-7.0, 7.0, 0.02, dtype=np.float32)
    q, z = np.meshgrid(axis, axis)
    areas = []
    for activation in (0.0, 1.0):
        q0, z0 = plane.at_end_diastole(q, z, activation)
        theta_deg, distance = np.degrees(np.arctan2(z0, q0)), np.hypot(q0, z0)
        start = strong.ventricle.radius(theta_deg, SHORT_AXIS_LEVEL, 0.0)
        is_muscle = (distance > start) & (distance < start + strong.ventricle.wall(theta_deg, SHORT_AXIS_LEVEL))
        areas.append(float(is_muscle.sum()) * 0.02**2 * strong.ventricle.length(activation))
    assert areas[1] == pytest.approx(areas[0], rel=0.01)


def test_the_painted_cavity_has_the_labelled_size(strong: Patient) -> None:
    ventricle, tissue = strong.ventricle, paint(strong, "PLAX")
    row = round((0.75 * ventricle.length_cm - tissue.z_min_cm) / tissue.spacing_cm)
    line = tissue.echo[row]
    middle = round(-tissue.q_min_cm / tissue.spacing_cm)
    border = 0.5 * (ECHO["blood"] + ECHO["myocardium"])
    is_blood = line < border
    left = middle - int(np.argmin(is_blood[middle::-1]))
    right = middle + int(np.argmin(is_blood[middle:]))
    assert (right - left - 1) * tissue.spacing_cm == pytest.approx(ventricle.lvidd_cm, abs=2 * tissue.spacing_cm)


def _quiet(clip: Clip) -> Clip:
    """Without what makes a picture hard to measure: noise, uneven beams, breathing, and the papillary muscles."""
    settings = replace(clip.settings, noise_db=-90.0, gain_db=0.0, range_db=60.0, width=160, height=128)
    return replace(clip, settings=settings, breathing=(0.0, 0.0, 0.0))


def test_the_drawn_cavity_shrinks_as_labelled(strong: Patient) -> None:
    """Measure the cavity in the pixels of A4C frames: width at one level, end-diastole and end-systole."""
    clip = _quiet(plan_clip(strong, "A4C"))
    frames, key_frames = clip.draw().astype(float), clip.key_frames()
    plane = plane_of(strong, "A4C", clip.placement)
    spacing_cm = clip.settings.spacing_mm / 10.0
    x = (np.arange(160) - 79.5) * spacing_cm
    y = (np.arange(128)[:, None] - 0.015 * 128) * spacing_cm
    q, z = plane.from_sector(*np.broadcast_arrays(x, y))
    for role, activation in (("ed", 0.0), ("es", 1.0)):
        is_level = np.abs(z / strong.ventricle.length(activation) - 0.6) < 0.12
        greys = [frames[key_frames[role]][is_level & (np.abs(q - at) < 0.12)].mean() for at in np.arange(-4, 4, 0.1)]
        border = 0.5 * (min(greys) + max(greys))
        is_dark = np.array(greys) < border
        width = 0.1 * (int(np.argmin(is_dark[40:])) + int(np.argmin(is_dark[40::-1])) - 1)
        sides = np.array([WALLS[wall] for wall in LONG_AXIS_WALLS["A4C"]])
        expected = float(strong.ventricle.radius(sides, 0.6, activation).sum())
        assert width == pytest.approx(expected, rel=0.12)


@pytest.mark.parametrize("view", VIEWS)
def test_a_clip_looks_like_an_echocardiogram(view: str) -> None:
    clip = plan_clip(PATIENTS[0], view)
    frames = clip.draw()
    assert frames.shape == (clip.n_frames, clip.settings.height, clip.settings.width)
    assert frames.dtype == np.uint8
    sector = Scanner(clip.settings, np.random.default_rng(0)).sector
    label = np.zeros_like(sector)
    label[2:7, 2:37] = True
    assert not np.any(sector & label)
    assert frames[:, ~sector & ~label].max() == 0
    assert np.all(frames[:, label] == frames[0, label])
    assert frames[0, label].max() > 100
    inside = frames[:, sector]
    assert 15 < inside.mean() < 130
    assert np.percentile(inside, 99.5) > 140
    # Speckle: neighbours along the beam differ, yet are related; frames differ, yet are related.
    assert 0.5 < np.corrcoef(frames[0, 1:].ravel(), frames[0, :-1].ravel())[0, 1] < 0.99
    assert 0.5 < np.corrcoef(frames[0].ravel(), frames[1].ravel())[0, 1] < 0.999


def test_speckle_moves_with_the_tissue(strong: Patient) -> None:
    """The wall of one frame, carried by the map, resembles that of a later frame; left in place it does not."""
    clip = _quiet(plan_clip(strong, "PSAX"))
    scanner = Scanner(clip.settings, np.random.default_rng(3))
    tissue = paint(strong, "PSAX")
    scatterers = scanner.scatterers(tissue)
    plane = plane_of(strong, "PSAX", clip.placement)
    still, moved = (
        scanner.frame(plane, tissue, scatterers, activation=activation, valves=(0.0, 0.0), sway_cm=(0.0, 0.0))
        for activation in (0.0, 0.35)
    )
    spacing_cm = clip.settings.spacing_mm / 10.0
    ventricle, angles = strong.ventricle, np.radians(np.arange(60.0, 120.0, 1.0))
    greys = []
    for picture, activation in ((still, 0.0), (moved, 0.35), (moved, 0.0)):
        radius = float(ventricle.radius(90.0, SHORT_AXIS_LEVEL, activation))
        stretch = ventricle.length(activation) / ventricle.length_cm
        depth = np.sqrt(
            radius**2
            + (
                (ventricle.radius_cm * profile(SHORT_AXIS_LEVEL) + 0.5) ** 2
                - (ventricle.radius_cm * profile(SHORT_AXIS_LEVEL)) ** 2
            )
            / stretch
        )
        turn = np.radians(clip.placement.tilt_deg)
        x_cm = clip.placement.x_cm + depth * np.cos(angles + turn)
        y_cm = clip.placement.y_cm - depth * np.sin(angles + turn)
        column = np.rint(x_cm / spacing_cm + 79.5).astype(int)
        row = np.rint(y_cm / spacing_cm + 0.015 * 128).astype(int)
        greys.append(picture[row, column].astype(float))
    assert np.corrcoef(greys[0], greys[1])[0, 1] > 0.6
    assert np.corrcoef(greys[0], greys[1])[0, 1] > np.corrcoef(greys[0], greys[2])[0, 1] + 0.2


@pytest.mark.parametrize("number", range(20))
def test_key_frames_show_exactly_the_labelled_volumes(number: int) -> None:
    patient = PATIENTS[number]
    for view in patient.views:
        clip = plan_clip(patient, view)
        assert 32 <= clip.n_frames <= 64
        assert (clip.n_frames - 1) / clip.fps >= 1.5 * 60.0 / patient.heart_rate_bpm
        roles = clip.key_frames()
        assert 0 <= roles["ed"] < roles["es"] < clip.n_frames
        assert clip.volumes_ml[roles["ed"]] == pytest.approx(patient.ventricle.edv_ml, rel=1e-9)
        assert clip.volumes_ml[roles["es"]] == pytest.approx(patient.ventricle.esv_ml, rel=1e-9)
        assert clip.volumes_ml.max() == pytest.approx(patient.ventricle.edv_ml, rel=1e-9)
        assert clip.volumes_ml.min() == pytest.approx(patient.ventricle.esv_ml, rel=1e-9)
        assert set(roles) == ({"ed", "es", "lvidd", "ivsd", "lvpwd"} if view == "PLAX" else {"ed", "es"})


def test_a_defect_shows_in_the_planes_that_cut_its_wall() -> None:
    ventricle = replace(PATIENTS[0].ventricle, hypokinetic_wall="inferior", residual_motion=0.1)
    patient = replace(PATIENTS[0], ventricle=ventricle)
    shown = {view: plan_clip(patient, view).shows_defect for view in VIEWS}
    assert shown == {"A4C": False, "A2C": True, "PLAX": False, "PSAX": True}


def test_brightness_does_not_tell_the_ejection_fraction() -> None:
    patients = [draw_patient(number) for number in range(100, 160)]
    lvef_pct = [patient.ventricle.lvef_pct for patient in patients]
    # Two heartbeats in eight pictures each: enough for a mean.
    clips = [replace(plan_clip(patient, "PSAX"), n_frames=8, fps=8) for patient in patients]
    means = [float(clip.draw().mean()) for clip in clips]
    assert abs(np.corrcoef(means, lvef_pct)[0, 1]) < 0.33  # the 99th percentile of chance for 60 pairs
