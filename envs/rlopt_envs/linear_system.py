"""A linear dynamical system as an environment: for identification, and as the plainest task of control."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import ArrayLike

from rlopt_envs._batch import Batch, Infos, Observations, action_limits
from rlopt_envs._batch_env import BatchEnv, BatchVectorEnv
from rlopt_envs._validation import BoolArray, FloatArray, choice, covariance, input_matrix, positive_vector, quadratic
from rlopt_envs.rendering import SystemPicture
from rlopt_envs.systems import LinearSystem, NonlinearSystem, random_bimodal, symmetric_root


class SystemBatch(Batch):
    """Copies of a dynamical system.

    Args:
        num_envs: Copies N.
        system: With at least one input.
        state_bounds: A copy terminates where a state is larger in modulus; (d,) or one number. None: never.
        reward: "quadratic" or "none".
        Q: Cost of states, (d, d). None: the identity.
        R: Cost of inputs, (m, m). None: the identity.
        initial_covariance: Of the first state, (d, d). None: the first state is 0.
        action_limit: (m,) or one number. None: 1.

    Raises:
        ValueError: For an argument of another shape or kind, or without effect.
    """

    def __init__(
        self,
        num_envs: int,
        system: NonlinearSystem,
        state_bounds: ArrayLike | None,
        reward: str,
        Q: ArrayLike | None,
        R: ArrayLike | None,
        initial_covariance: ArrayLike | None,
        action_limit: ArrayLike | None,
    ) -> None:
        d, m = system.num_states, system.num_inputs
        limits = action_limits(action_limit, 1.0, m)
        super().__init__(num_envs, d, spaces.Box(-np.inf, np.inf, (d,), np.float64), limits)
        self.system = system
        self.num_draws = self.num_first_draws = d
        self.state_bounds = None if state_bounds is None else positive_vector("state_bounds", state_bounds, d)
        self.pays = choice("reward", reward, ("quadratic", "none")) == "quadratic"
        if not self.pays and (Q is not None or R is not None):
            raise ValueError("Q and R must be None with reward='none', got a matrix; use reward='quadratic'.")
        self.Q = np.eye(d) if Q is None else covariance("Q", Q, d)
        self.R = np.eye(m) if R is None else covariance("R", R, m)
        first = np.zeros((d, d)) if initial_covariance is None else covariance("initial_covariance", initial_covariance, d)
        self.initial_covariance = first
        self._initial_factor = symmetric_root(first)

    def _first_states(self, draws: FloatArray) -> FloatArray:
        return draws @ self._initial_factor

    def advance(self, actions: FloatArray, draws: FloatArray) -> tuple[FloatArray, BoolArray, Infos]:
        """Step all copies, see `Batch`."""
        if self.pays:
            rewards = -(quadratic(self.states, self.Q) + quadratic(actions, self.R))
        else:
            rewards = np.zeros(self.num_envs)
        self.states = self.system.next_states(self.states, actions, draws @ self.system.noise_factor)
        self.steps += 1
        terminated = np.zeros(self.num_envs, np.bool_)
        if self.state_bounds is not None:
            np.any(np.abs(self.states) > self.state_bounds, axis=1, out=terminated)
        return rewards, terminated, {}

    def observe(self) -> Observations:
        """Return the states, (N, d) float64."""
        return self.states.copy()

    def picture(self, title: str) -> SystemPicture:
        """Return how the system is drawn: arrows show where a system of two states goes without input and noise."""
        system, nothing = self.system, np.zeros((1, self.system.num_inputs))
        return SystemPicture(title, field=lambda states: system.next_states(states, nothing, np.zeros_like(states)))


def system_matrices(
    A: ArrayLike | None,
    B: ArrayLike | None,
    num_states: int | None,
    spectral_radius: float | None,
    matrix_seed: int | None,
) -> tuple[ArrayLike, ArrayLike]:
    """Return A, random where it is None, and B, the identity where it is None.

    Raises:
        ValueError: If A is given beside the arguments of a random one, or B has no columns.
    """
    options = {"num_states": num_states, "spectral_radius": spectral_radius, "matrix_seed": matrix_seed}
    given = [name for name, value in options.items() if value is not None]
    if A is None:
        rng = np.random.default_rng(0 if matrix_seed is None else matrix_seed)
        radius = 0.9 if spectral_radius is None else spectral_radius
        A = random_bimodal(5 if num_states is None else num_states, radius, rng)
    elif given:
        raise ValueError(f"{given[0]} must be None where A is given, got {options[given[0]]}; it belongs to a random A.")
    d = len(np.asarray(A))
    return A, np.eye(d) if B is None else input_matrix(B, d)


class SystemAttributes:
    """What the single and the vectorised environment of a system know."""

    _system_batch: SystemBatch

    @property
    def system(self) -> NonlinearSystem:
        """The system, with `A`, `B` and `noise_cov`; `system.simulate` gives long trajectories at once."""
        return self._system_batch.system

    @property
    def initial_covariance(self) -> FloatArray:
        """Covariance of the first state, (d, d)."""
        return self._system_batch.initial_covariance


class _LinearAttributes(SystemAttributes):
    @property
    def system(self) -> LinearSystem:
        """The system, with `A`, `B` and `noise_cov`; `system.simulate` gives long trajectories at once."""
        system = self._system_batch.system
        assert isinstance(system, LinearSystem)
        return system

    @property
    def stationary_covariance(self) -> FloatArray:
        """Covariance of the state in the long run without inputs, (d, d).

        Raises:
            ValueError: If the spectral radius of A is >= 1.
        """
        return self.system.stationary_covariance()


def _make_batch(
    num_envs: int,
    A: ArrayLike | None = None,
    B: ArrayLike | None = None,
    noise_cov: ArrayLike | None = None,
    num_states: int | None = None,
    spectral_radius: float | None = None,
    matrix_seed: int | None = None,
    state_bounds: ArrayLike | None = None,
    reward: str = "quadratic",
    Q: ArrayLike | None = None,
    R: ArrayLike | None = None,
    initial_covariance: ArrayLike | str | None = None,
    action_limit: ArrayLike | None = None,
) -> SystemBatch:
    system = LinearSystem(*system_matrices(A, B, num_states, spectral_radius, matrix_seed), noise_cov)
    first: Any = initial_covariance
    if isinstance(first, str):
        choice("initial_covariance", first, ("stationary",))
        first = system.stationary_covariance()
    return SystemBatch(num_envs, system, state_bounds, reward, Q, R, first, action_limit)


class LinearSystemEnv(_LinearAttributes, BatchEnv):
    """A linear system driven by Gaussian noise and by actions.

    ## Description

    The state moves as x' = A x + B u + w, w ~ N(0, noise_cov). Without `A` the matrix is random: symmetric, with
    ceil(num_states / 2) eigenvalues equal to `spectral_radius` and the others a third of it, in a random basis; this is the system
    on which online identification with replay is usually compared. Action 0 leaves the system to its noise.

    `env.unwrapped.system` is the `LinearSystem` with `A`, `B`, `noise_cov`, and `env.unwrapped.stationary_covariance` the
    covariance of the state in the long run without inputs. Loops over `step` are slow for identification: `system.simulate` makes
    ten million steps in seconds.

    ## Action Space

    `Box(-action_limit, action_limit, (m,), float32)`; actions outside are clipped.

    | Num       | Action  | Unit | Min           | Max          |
    | --------- | ------- | ---- | ------------- | ------------ |
    | 0 ... m-1 | input u | 1    | -action_limit | action_limit |

    ## Observation Space

    `Box(-inf, inf, (d,), float64)`, the state itself; double precision, because estimators resolve errors below single precision.

    | Num       | Observation | Unit | Min  | Max |
    | --------- | ----------- | ---- | ---- | --- |
    | 0 ... d-1 | state x     | 1    | -inf | inf |

    ## Rewards

    -(x'Qx + u'Ru) (here ' transposes) with the state before the step and the clipped action, range (-inf, 0]; with reward="none" 0.

    ## Starting State

    0, or normal with mean 0 and covariance `initial_covariance`. `reset(options={"initial_state": x})` takes a given state instead.

    ## Episode End

    * Termination: where a state leaves [-state_bounds, state_bounds]; never without bounds.
    * Truncation: after 1000 steps (`max_episode_steps` of `gymnasium.make`).

    ## Arguments

    | Argument             | Meaning                                                      | Default             | Range          |
    | -------------------- | ------------------------------------------------------------ | ------------------- | -------------- |
    | `A`                  | transition matrix                                            | random, see above   | (d, d)         |
    | `B`                  | input matrix; `LinearSystem` itself has no inputs by default | the identity        | (d, m), m >= 1 |
    | `noise_cov`          | covariance of the noise                                      | the identity        | (d, d)         |
    | `num_states`         | d of a random A                                              | 5                   | >= 1           |
    | `spectral_radius`    | of a random A                                                | 0.9                 | > 0            |
    | `matrix_seed`        | of a random A                                                | 0                   | >= 0           |
    | `state_bounds`       | largest modulus of states, one number or d                   | None: no bounds     | > 0            |
    | `reward`             | "quadratic" or "none"                                        | "quadratic"         |                |
    | `Q`, `R`             | cost of states and inputs; not with reward="none"            | the identity        | (d, d), (m, m) |
    | `initial_covariance` | of the first state, or "stationary"                          | None: first state 0 | (d, d)         |
    | `action_limit`       | one number, or one for each input                            | 1                   | > 0            |
    | `render_mode`        | None, "rgb_array" or "human"                                 | None                |                |

    Raises:
        ValueError: For an argument outside its range, or one that would have no effect.

    References: Kowshik et al., Streaming linear system identification with reverse experience replay, NeurIPS 2021, arXiv
    2103.05896.

    Example:
        >>> import gymnasium
        >>> env = gymnasium.make("rlopt_envs:rlopt/LinearSystem-v0", num_states=2)
        >>> obs, info = env.reset(seed=0)
        >>> obs.tolist(), env.unwrapped.stationary_covariance.trace().round(6).tolist()  # 1 / (1 - 0.81) + 1 / (1 - 0.09)
        ([0.0, 0.0], 6.362059)

    ## Version History

    * v0: first version.
    """

    def __init__(
        self,
        A: ArrayLike | None = None,
        B: ArrayLike | None = None,
        noise_cov: ArrayLike | None = None,
        *,
        num_states: int | None = None,
        spectral_radius: float | None = None,
        matrix_seed: int | None = None,
        state_bounds: ArrayLike | None = None,
        reward: str = "quadratic",
        Q: ArrayLike | None = None,
        R: ArrayLike | None = None,
        initial_covariance: ArrayLike | str | None = None,
        action_limit: ArrayLike | None = None,
        render_mode: str | None = None,
    ) -> None:
        batch = _make_batch(
            1, A, B, noise_cov, num_states, spectral_radius, matrix_seed,
            state_bounds, reward, Q, R, initial_covariance, action_limit,
        )  # fmt: skip
        self._system_batch = batch
        super().__init__(batch, batch.picture("Linear system"), render_mode)


class LinearSystemVectorEnv(_LinearAttributes, BatchVectorEnv):
    """Many copies of `LinearSystemEnv`, stepped at once; attributes are those of `LinearSystemEnv`, with `states` for `state`.

    Args:
        num_envs: Copies, >= 1; all have the same matrices.
        max_episode_steps: Steps after which episodes are truncated. None: never.
        render_mode: None or "rgb_array" (one picture for each copy).
        autoreset_mode: "NextStep", "SameStep" or "Disabled", or the `gymnasium.vector.AutoresetMode`.
        **options: The arguments of `LinearSystemEnv`.

    Raises:
        ValueError: As `LinearSystemEnv`.

    Example:
        >>> env = LinearSystemVectorEnv(num_envs=3)
        >>> env.reset(seed=0)[0].shape
        (3, 5)
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **options: Any,
    ) -> None:
        self._system_batch = batch = _make_batch(num_envs, **options)
        super().__init__(batch, batch.picture("Linear system"), max_episode_steps, render_mode, autoreset_mode)
