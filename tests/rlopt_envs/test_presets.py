"""Physical systems: dimensions, sampling, modes, and what can be steered and seen."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from scipy.integrate import quad_vec, solve_ivp

from rlopt_envs.presets import PRESETS, SystemPreset, mass_spring_damper_chain
from rlopt_envs.riccati import infinite_horizon, kalman, lqg_average_cost, spectral_radius

ALL = pytest.mark.parametrize("preset", list(PRESETS.values()), ids=list(PRESETS))


def continuous_modes(preset: SystemPreset) -> list[complex]:
    """Eigenvalues per second, those of positive imaginary part or real, slowest first."""
    modes = np.log(np.linalg.eigvals(preset.A).astype(complex)) / preset.time_step
    return sorted((complex(mode) for mode in modes if mode.imag > -1e-9), key=abs)


def test_names() -> None:
    assert list(PRESETS) == ["double_integrator", "inverted_pendulum", "mass_spring_damper_chain", "aircraft_longitudinal"]
    assert [(name, preset.A.shape[0], preset.B.shape[1], preset.C.shape[0]) for name, preset in PRESETS.items()] == [
        ("double_integrator", 2, 1, 1),
        ("inverted_pendulum", 4, 1, 2),
        ("mass_spring_damper_chain", 6, 1, 1),
        ("aircraft_longitudinal", 4, 2, 2),
    ]


@ALL
def test_shapes_and_labels_agree(preset: SystemPreset) -> None:
    d, m, p = len(preset.A), preset.B.shape[1], len(preset.C)
    assert PRESETS[preset.name] is preset
    assert preset.A.shape == preset.Q.shape == preset.noise_cov.shape == (d, d)
    assert (preset.B.shape, preset.R.shape) == ((d, m), (m, m))
    assert (preset.C.shape, preset.observation_noise_cov.shape) == ((p, d), (p, p))
    assert len(preset.state_names) == len(preset.state_units) == d
    assert len(preset.input_names) == len(preset.input_units) == m
    assert preset.source
    assert preset.description.endswith(".")
    assert all(value.dtype == np.float64 for value in vars(preset).values() if isinstance(value, np.ndarray))


@ALL
def test_presets_cannot_be_changed_by_accident(preset: SystemPreset) -> None:
    for value in vars(preset).values():
        if isinstance(value, np.ndarray):
            with pytest.raises(ValueError, match="read-only"):
                value[0, 0] = 1.0


@ALL
def test_everything_can_be_steered_and_seen(preset: SystemPreset) -> None:
    """Ranks of the controllability and observability matrices."""
    powers = [np.linalg.matrix_power(preset.A, k) for k in range(len(preset.A))]
    assert np.linalg.matrix_rank(np.hstack([power @ preset.B for power in powers])) == len(preset.A)
    assert np.linalg.matrix_rank(np.vstack([preset.C @ power for power in powers])) == len(preset.A)


@ALL
def test_optimal_control_stabilises_with_and_without_observing_the_state(preset: SystemPreset) -> None:
    for discount in (0.99, 1.0):
        gain, _ = infinite_horizon(preset.A, preset.B, preset.Q, preset.R, discount)
        assert spectral_radius(preset.A - preset.B @ gain) < 0.99
    filter_gain = kalman(preset.A, preset.C, preset.noise_cov, preset.observation_noise_cov).gain
    assert spectral_radius(preset.A - preset.A @ filter_gain @ preset.C) < 1
    matrices = preset.A, preset.B, preset.C, preset.Q, preset.R, preset.noise_cov, preset.observation_noise_cov
    assert 0 < lqg_average_cost(*matrices) < 10


def test_double_integrator_is_exact() -> None:
    preset = PRESETS["double_integrator"]
    np.testing.assert_allclose(preset.A, [[1, 0.1], [0, 1]], rtol=0, atol=1e-15)
    np.testing.assert_allclose(preset.B, [[0.005], [0.1]], rtol=1e-14)
    # White acceleration of density 0.1: variances q T^3 / 3, q T^2 / 2, q T
    np.testing.assert_allclose(preset.noise_cov, 0.1 * np.array([[0.1**3 / 3, 0.1**2 / 2], [0.1**2 / 2, 0.1]]), rtol=1e-12)


def continuous_chain(num_masses: int) -> np.ndarray:
    """The derivative of positions and velocities, mass by mass, of a chain of stiffness 4 and damping 0.1."""
    F = np.zeros((2 * num_masses, 2 * num_masses))
    for i in range(num_masses):
        F[i, num_masses + i] = 1.0
        for neighbour in (i - 1, i + 1):
            if neighbour < num_masses:  # the last mass has one neighbour; the first has the wall
                for offset, coefficient in ((0, 4.0), (num_masses, 0.1)):
                    F[num_masses + i, offset + i] -= coefficient
                    if neighbour >= 0:
                        F[num_masses + i, offset + neighbour] += coefficient
    return F


def test_chain_is_the_exact_solution_of_its_differential_equation() -> None:
    preset, F = PRESETS["mass_spring_damper_chain"], continuous_chain(3)
    start, force = np.array([0.3, -0.2, 0.5, 1.0, 0.0, -1.0]), 0.7
    push = np.array([0, 0, 0, 0, 0, 1.0])
    solution = solve_ivp(lambda _, x: F @ x + push * force, (0, preset.time_step), start, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(preset.A @ start + preset.B[:, 0] * force, solution.y[:, -1], atol=1e-9)


def test_noise_of_a_step_is_the_integral_over_it() -> None:
    preset, F = PRESETS["mass_spring_damper_chain"], continuous_chain(3)
    values, vectors = np.linalg.eig(F)
    inverse = np.linalg.inv(vectors)

    def gathered(seconds: float) -> np.ndarray:
        transition = (vectors @ np.diag(np.exp(seconds * values)) @ inverse).real
        return transition @ np.diag([0, 0, 0, 0.1, 0.1, 0.1]) @ transition.T

    np.testing.assert_allclose(preset.noise_cov, quad_vec(gathered, 0, preset.time_step)[0], atol=1e-12)


@pytest.mark.parametrize("num_masses", [1, 3, 6])
def test_chain_has_the_known_modes(num_masses: int) -> None:
    preset = mass_spring_damper_chain(num_masses, stiffness=5.0, damping=0.2, mass=2.0, time_step=0.05)
    k = np.arange(1, num_masses + 1)
    frequencies = 2 * np.sqrt(5.0 / 2.0) * np.sin((2 * k - 1) * np.pi / (4 * num_masses + 2))
    modes = continuous_modes(preset)
    np.testing.assert_allclose(np.abs(modes), frequencies, rtol=1e-9)
    # Dampers beside springs: damping ratio (damping / stiffness) frequency / 2
    np.testing.assert_allclose([-mode.real / abs(mode) for mode in modes], 0.2 / 5.0 * frequencies / 2, rtol=1e-8)


def test_pendulum_is_gymnasiums_cart_pole_near_the_top() -> None:
    """Accelerations by finite differences of CartPole-v1, whose step is x += tau v, v += tau acceleration."""
    preset, cart_pole = PRESETS["inverted_pendulum"], gym.make("CartPole-v1").unwrapped
    size = 1e-5

    def derivative(state: np.ndarray, force: float) -> np.ndarray:
        cart_pole.reset(seed=0)
        cart_pole.state, cart_pole.force_mag = np.array(state), force
        cart_pole.step(1)
        return (np.array(cart_pole.state) - state) / cart_pole.tau

    F = np.array([derivative(size * column, 0.0) / size for column in np.eye(4)]).T
    G = derivative(np.zeros(4), size) / size
    start, force = np.array([0.1, -0.2, 0.05, 0.1]), 0.6
    solution = solve_ivp(lambda _, x: F @ x + G * force, (0, preset.time_step), start, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(preset.A @ start + preset.B[:, 0] * force, solution.y[:, -1], atol=1e-8)


def test_pendulum_falls_over() -> None:
    # Small angles: a'' = (M + m) g / (l (4/3 (M + m) - m)) a without force
    growth = np.sqrt(1.1 * 9.8 / (0.5 * (4 / 3 * 1.1 - 0.1)))
    assert spectral_radius(PRESETS["inverted_pendulum"].A) == pytest.approx(np.exp(0.05 * growth), rel=1e-9)
    assert max(mode.real for mode in continuous_modes(PRESETS["inverted_pendulum"])) == pytest.approx(growth)


def test_aircraft_has_the_published_modes() -> None:
    phugoid, short_period = continuous_modes(PRESETS["aircraft_longitudinal"])
    assert (short_period.real, short_period.imag) == pytest.approx((-0.3750, 0.8818), abs=5e-5)  # published with 4 decimals
    assert (phugoid.real, phugoid.imag) == pytest.approx((-0.0005, 0.0674), abs=5e-5)
    assert spectral_radius(PRESETS["aircraft_longitudinal"].A) < 1


def test_aircraft_climbs_as_it_pitches() -> None:
    """Without downward velocity a pitch angle of 1 crad is a climb of 774 ft/s * 0.01."""
    assert (PRESETS["aircraft_longitudinal"].C @ [0, 0, 0, 1]).tolist() == [0, 7.74]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_masses": 0}, "num_masses must be >= 1, got 0"),
        ({"stiffness": 0.0}, "stiffness must be > 0 and finite, got 0.0"),
        ({"mass": -1.0}, "mass must be > 0 and finite, got -1.0"),
        ({"time_step": float("inf")}, "time_step must be > 0 and finite, got inf"),
        ({"damping": -0.1}, "damping must be >= 0 and finite, got -0.1"),
    ],
)
def test_chain_refuses_impossible_values(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mass_spring_damper_chain(**arguments)  # type: ignore[arg-type]
