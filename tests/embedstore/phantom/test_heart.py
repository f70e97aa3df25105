"""The ventricle's labels, each against another way of getting at the same number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstore.phantom.clip import FRAME_RATES_HZ
from embedstore.phantom.heart import MEASURED_LEVEL, VIEWS, WALLS, WIDEST_LEVEL, CardiacCycle, draw_patient

PATIENTS = [draw_patient(number) for number in range(150)]
LVEF_PCT = np.array([patient.ventricle.lvef_pct for patient in PATIENTS])


def test_volume_without_a_defect_is_that_of_a_truncated_ellipsoid() -> None:
    ventricle = replace(PATIENTS[0].ventricle, hypokinetic_wall=None, residual_motion=1.0)
    # The integral of p**2 over the level, in closed form.
    above, below = WIDEST_LEVEL, 1.0 - WIDEST_LEVEL
    share = 1.0 - (above / 3.0) * (1.0 + (below / above) ** 3)
    for activation in (0.0, 0.4, 1.0):
        radius = ventricle.radius_cm * (1.0 - ventricle.radial_shortening * activation)
        expected = np.pi * radius**2 * ventricle.length(activation) * share
        assert float(ventricle.volume_ml(activation)) == pytest.approx(expected, rel=1e-4)


def test_volume_with_a_defect_agrees_with_counting_points() -> None:
    patient = next(patient for patient in PATIENTS if patient.ventricle.hypokinetic_wall is not None)
    ventricle = patient.ventricle
    rng = np.random.default_rng(1)
    half, length = 1.05 * ventricle.radius_cm, ventricle.length(1.0)
    x, y = rng.uniform(-half, half, (2, 400_000))
    level = rng.uniform(0.0, 1.0, 400_000)
    reach = ventricle.radius(np.degrees(np.arctan2(y, x)), level, 1.0)
    counted = float((np.hypot(x, y) < reach).mean()) * (2 * half) ** 2 * length
    assert ventricle.esv_ml == pytest.approx(counted, rel=0.01)
    still = replace(ventricle, hypokinetic_wall=None, residual_motion=1.0)
    assert still.esv_ml < ventricle.esv_ml


def test_measurements_are_those_of_a_human_heart() -> None:
    hearts = [patient.ventricle for patient in PATIENTS]
    assert LVEF_PCT.min() < 25
    assert LVEF_PCT.max() > 70
    assert all(20 <= lvef <= 75 for lvef in LVEF_PCT)
    assert all(3.0 < heart.lvidd_cm < 7.5 and 40 < heart.edv_ml < 260 for heart in hearts)
    assert all(0.5 < wall < 2.0 for heart in hearts for wall in (heart.ivsd_cm, heart.lvpwd_cm))
    for heart in hearts:
        assert heart.lvidd_cm < 2 * heart.radius_cm
        assert float(heart.wall(WALLS["inferolateral"], MEASURED_LEVEL)) == heart.lvpwd_cm


@pytest.mark.parametrize(
    "fact",
    [
        lambda patient: patient.heart_rate_bpm,
        lambda patient: patient.age_years,
        lambda patient: patient.sex == "F",
        lambda patient: patient.window_db,
        lambda patient: patient.ventricle.hypokinetic_wall is None,
        lambda patient: float((patient.ventricle.volume_ml(np.linspace(0, 1, 9)) ** (2 / 3)).mean()),
        lambda patient: patient.right_width_cm,
        lambda patient: len(patient.views),
    ],
)
def test_what_must_not_tell_the_ejection_fraction_does_not(fact) -> None:  # type: ignore[no-untyped-def]
    values = np.array([float(fact(patient)) for patient in PATIENTS])
    # 0.21 is the 99th percentile of |r| of 150 pairs that have nothing to do with each other.
    assert abs(np.corrcoef(values, LVEF_PCT)[0, 1]) < 0.21


def test_a_patient_depends_on_number_and_seed_only() -> None:
    assert draw_patient(7) == PATIENTS[7]
    assert draw_patient(7, seed=1) != PATIENTS[7]
    assert len({patient.patient_id for patient in PATIENTS}) == len(PATIENTS)
    assert all(patient.views[0] == "A4C" and set(patient.views) <= set(VIEWS) for patient in PATIENTS)
    assert 2.5 * 150 < sum(len(patient.views) for patient in PATIENTS) < 480


@given(st.floats(54.0, 100.0), st.sampled_from(FRAME_RATES_HZ), st.floats(0.0, 1.0))
def test_every_beat_shows_both_extremes(heart_rate_bpm: float, fps: int, phase: float) -> None:
    cycle = CardiacCycle(heart_rate_bpm)
    times_s = phase * cycle.period_s + np.arange(0.0, cycle.period_s + 1.0 / fps, 1.0 / fps)
    activation = cycle.activation(times_s)
    assert activation.min() == pytest.approx(0.0, abs=1e-12)
    assert activation.max() == pytest.approx(1.0, abs=1e-12)


def test_the_beat_is_continuous_and_the_valves_take_turns() -> None:
    for heart_rate_bpm in (54.0, 75.0, 100.0):
        cycle = CardiacCycle(heart_rate_bpm)
        times_s = np.linspace(0.0, 2 * cycle.period_s, 4000)
        activation = cycle.activation(times_s)
        assert np.abs(np.diff(activation)).max() < 0.01
        assert not np.any((cycle.mitral_opening(times_s) > 0) & (cycle.aortic_opening(times_s) > 0))
        # The ventricle empties while the aortic valve is open only, and fills while the mitral valve is.
        emptying = np.diff(activation) > 1e-6
        filling = np.diff(activation) < -1e-6
        assert np.all(cycle.aortic_opening(times_s)[:-1][emptying] + cycle.aortic_opening(times_s)[1:][emptying] > 0)
        assert np.all(cycle.mitral_opening(times_s)[:-1][filling] + cycle.mitral_opening(times_s)[1:][filling] > 0)
