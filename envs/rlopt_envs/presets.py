"""Physical systems to control: matrices with units and sources.

All are continuous-time models x' = F x + G u + (white noise), observed and controlled every `time_step` seconds with the input
held in between; their discrete matrices and the covariance of the noise gathered in a step are exact (matrix exponentials).
Where a source is named it gives the dynamics. Noise and cost matrices are choices of rlopt, made so that both states and inputs
contribute to the optimal cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm
from scipy.signal import cont2discrete

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SystemPreset:
    """A system x' = A x + B u + w, y = C x + v with a cost x'Qx + u'Ru per step. Its arrays are read-only.

    Args:
        name: Name in `PRESETS`.
        A: Shape (d, d).
        B: Shape (d, m).
        C: Shape (p, d).
        Q: Cost of states, shape (d, d).
        R: Cost of inputs, shape (m, m).
        noise_cov: Covariance of w, shape (d, d).
        observation_noise_cov: Covariance of v, shape (p, p).
        time_step: Seconds between two steps.
        state_names: One for each state.
        state_units: One for each state.
        input_names: One for each input.
        input_units: One for each input.
        source: Where the dynamics come from.
        description: What it is.
    """

    name: str
    A: FloatArray
    B: FloatArray
    C: FloatArray
    Q: FloatArray
    R: FloatArray
    noise_cov: FloatArray
    observation_noise_cov: FloatArray
    time_step: float
    state_names: tuple[str, ...]
    state_units: tuple[str, ...]
    input_names: tuple[str, ...]
    input_units: tuple[str, ...]
    source: str
    description: str

    def __post_init__(self) -> None:
        """Protect the arrays: presets are shared."""
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)


def double_integrator() -> SystemPreset:
    """Return a unit mass on a line that a force pushes.

    Example:
        >>> double_integrator().A.tolist(), double_integrator().B.round(6).tolist()
        ([[1.0, 0.1], [0.0, 1.0]], [[0.005], [0.1]])
    """
    return _sampled(
        name="double_integrator",
        F=[[0.0, 1.0], [0.0, 0.0]],
        G=[[0.0], [1.0]],
        C=[[1.0, 0.0]],
        Q=np.diag([1.0, 0.1]),
        R=np.array([[0.1]]),
        noise_density=np.diag([0.0, 0.1]),
        observation_noise_cov=np.array([[0.01]]),
        time_step=0.1,
        states={"position": "m", "velocity": "m/s"},
        inputs={"force": "N"},
        source="Newton's second law for a mass of 1 kg.",
        description="A unit mass without friction, pushed by a force; its position is measured.",
    )


def inverted_pendulum() -> SystemPreset:
    """Return a pole on a cart, linearised about the upright position.

    A cart of mass M = 1 kg carries a uniform pole of mass m = 0.1 kg and half-length l = 0.5 m on a free hinge; g = 9.8 m/s^2. With
    position x, angle a from the upright position and force u on the cart, small angles leave of the equations of motion

        (M + m) x'' + m l a'' = u,    m l x'' + 4/3 m l^2 a'' = m g l a.

    These are the cart and pole of Gymnasium's CartPole-v1. The upright position is unstable: one mode grows like exp(3.97 t).

    Example:
        >>> float(np.abs(np.linalg.eigvals(inverted_pendulum().A)).max().round(4))  # exp(3.9726 * 0.05)
        1.2197
    """
    cart, pole, half_length, gravity = 1.0, 0.1, 0.5, 9.8
    inertia = np.array([[cart + pole, pole * half_length], [pole * half_length, 4 / 3 * pole * half_length**2]])
    accelerations = np.linalg.solve(inertia, np.array([[0.0, 1.0], [pole * gravity * half_length, 0.0]]))  # columns: angle, force
    F = np.zeros((4, 4))
    F[0, 1] = F[2, 3] = 1.0
    F[[1, 3], 2] = accelerations[:, 0]
    G = np.zeros((4, 1))
    G[[1, 3], 0] = accelerations[:, 1]
    return _sampled(
        name="inverted_pendulum",
        F=F,
        G=G,
        C=[[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]],
        Q=np.diag([1.0, 0.1, 10.0, 0.1]),
        R=np.array([[0.01]]),
        noise_density=np.diag([0.0, 0.01, 0.0, 0.01]),
        observation_noise_cov=np.diag([1e-4, 1e-4]),
        time_step=0.05,
        states={"position": "m", "velocity": "m/s", "angle": "rad", "angular velocity": "rad/s"},
        inputs={"force": "N"},
        source="Barto, Sutton and Anderson, Neuronlike adaptive elements that can solve difficult learning control problems, "
        "IEEE Transactions on Systems, Man, and Cybernetics 13 (1983), without friction, linearised.",
        description="A pole on a cart about the upright position; position and angle are measured.",
    )


def mass_spring_damper_chain(
    num_masses: int = 3, stiffness: float = 4.0, damping: float = 0.1, mass: float = 1.0, time_step: float = 0.1
) -> SystemPreset:
    """Return masses in a row, each tied to the one before by a spring and a damper, the first one to a wall.

    The force acts on the last mass, whose position is measured. Mode k = 1 ... num_masses has the undamped frequency
    2 sqrt(stiffness / mass) sin((2k - 1) pi / (4 num_masses + 2)) rad/s.

    Args:
        num_masses: N >= 1; the states are N positions (relative to rest), then N velocities.
        stiffness: Of each spring, N/m, > 0.
        damping: Of each damper, N s/m, >= 0.
        mass: Of each mass, kg, > 0.
        time_step: Seconds between two steps, > 0.

    Raises:
        ValueError: For values out of range.

    Example:
        >>> mass_spring_damper_chain(num_masses=5).A.shape
        (10, 10)
    """
    if num_masses < 1:
        raise ValueError(f"num_masses must be >= 1, got {num_masses}.")
    for name, value in (("stiffness", stiffness), ("mass", mass), ("time_step", time_step)):
        if not 0.0 < value < np.inf:
            raise ValueError(f"{name} must be > 0 and finite, got {value}.")
    if not 0.0 <= damping < np.inf:
        raise ValueError(f"damping must be >= 0 and finite, got {damping}.")
    links = 2.0 * np.eye(num_masses) - np.eye(num_masses, k=1) - np.eye(num_masses, k=-1)
    links[-1, -1] = 1.0  # nothing is tied to the far side of the last mass
    zero, one = np.zeros((num_masses, num_masses)), np.eye(num_masses)
    last = np.eye(2 * num_masses)[[num_masses - 1]]  # picks the last position
    return _sampled(
        name="mass_spring_damper_chain",
        F=np.block([[zero, one], [-stiffness / mass * links, -damping / mass * links]]),
        G=np.eye(2 * num_masses)[:, [-1]] / mass,
        C=last,
        Q=np.diag([1.0] * num_masses + [0.1] * num_masses),
        R=np.array([[0.1]]),
        noise_density=np.diag([0.0] * num_masses + [0.1] * num_masses),
        observation_noise_cov=np.array([[0.01]]),
        time_step=time_step,
        states={f"position {i}": "m" for i in range(1, num_masses + 1)}
        | {f"velocity {i}": "m/s" for i in range(1, num_masses + 1)},
        inputs={"force": "N"},
        source="Newton's second law and Hooke's law.",
        description=f"{num_masses} masses on springs and dampers, pushed at the free end; the last position is measured.",
    )


def aircraft_longitudinal() -> SystemPreset:
    """Return the motion of a Boeing 747 in its plane of symmetry, about level flight at 40,000 ft and 774 ft/s.

    Angles are in crad (0.01 rad). A unit of thrust accelerates the aircraft by 1 ft/s^2. Airspeed and climb rate (774 ft/s times
    the pitch angle, less the downward velocity) are measured. Its two oscillations, before sampling: the short-period mode with
    eigenvalues -0.3750 +- 0.8818i per second (7 s) and the phugoid with -0.0005 +- 0.0674i (93 s).

    Example:
        >>> preset = aircraft_longitudinal()
        >>> modes = np.log(np.linalg.eigvals(preset.A)) / preset.time_step
        >>> sorted({(float(mode.real.round(4)), float(abs(mode.imag).round(4))) for mode in modes})
        [(-0.375, 0.8818), (-0.0005, 0.0674)]
    """
    C = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 7.74]])
    return _sampled(
        name="aircraft_longitudinal",
        F=[[-0.003, 0.039, 0.0, -0.322], [-0.065, -0.319, 7.74, 0.0], [0.020, -0.101, -0.429, 0.0], [0.0, 0.0, 1.0, 0.0]],
        G=[[0.01, 1.0], [-0.18, -0.04], [-1.16, 0.598], [0.0, 0.0]],
        C=C,
        Q=C.T @ C,
        R=np.eye(2),
        noise_density=np.diag([1.0, 1.0, 0.0, 0.0]),
        observation_noise_cov=np.eye(2),
        time_step=0.5,
        states={"forward velocity": "ft/s", "downward velocity": "ft/s", "pitch rate": "crad/s", "pitch angle": "crad"},
        inputs={"elevator": "crad", "thrust": "ft/s^2"},
        source="Boyd, lecture notes EE263 Introduction to Linear Dynamical Systems, Stanford University, lecture on linear "
        "dynamical systems with inputs and outputs (Boeing 747).",
        description="A Boeing 747 in cruise, driven by gusts; airspeed and climb rate are measured.",
    )


def _sampled(
    *,
    name: str,
    F: FloatArray | Sequence[Sequence[float]],
    G: FloatArray | Sequence[Sequence[float]],
    C: FloatArray | Sequence[Sequence[float]],
    Q: FloatArray,
    R: FloatArray,
    noise_density: FloatArray,
    observation_noise_cov: FloatArray,
    time_step: float,
    states: dict[str, str],
    inputs: dict[str, str],
    source: str,
    description: str,
) -> SystemPreset:
    """Return the preset of a continuous-time model whose input is held for a time step and whose noise is white."""
    F, G = np.asarray(F, np.float64), np.asarray(G, np.float64)
    A, B, *_ = cont2discrete((F, G, np.zeros((1, len(F))), np.zeros((1, G.shape[1]))), time_step, method="zoh")
    # The noise of a step is int_0^T exp(F s) density exp(F' s) ds; Van Loan (1978) reads it off one exponential.
    exponential = expm(time_step * np.block([[-F, noise_density], [np.zeros_like(F), F.T]]))
    size = len(F)
    noise_cov = exponential[size:, size:].T @ exponential[:size, size:]
    return SystemPreset(
        name=name,
        A=np.asarray(A, np.float64),
        B=np.asarray(B, np.float64),
        C=np.asarray(C, np.float64),
        Q=Q,
        R=R,
        noise_cov=0.5 * (noise_cov + noise_cov.T),
        observation_noise_cov=observation_noise_cov,
        time_step=time_step,
        state_names=tuple(states),
        state_units=tuple(states.values()),
        input_names=tuple(inputs),
        input_units=tuple(inputs.values()),
        source=source,
        description=description,
    )


PRESETS: dict[str, SystemPreset] = {
    preset.name: preset
    for preset in (double_integrator(), inverted_pendulum(), mass_spring_damper_chain(), aircraft_longitudinal())
}
"""The systems by name; `mass_spring_damper_chain` has its default arguments."""
