"""A generalised linear dynamical system as an environment."""

from __future__ import annotations

from typing import Any

from gymnasium.vector import AutoresetMode
from numpy.typing import ArrayLike

from rlopt_envs._batch_env import BatchEnv, BatchVectorEnv
from rlopt_envs.linear_system import SystemAttributes, SystemBatch, system_matrices
from rlopt_envs.systems import LinkFunction, NonlinearSystem


def _make_batch(
    num_envs: int,
    A: ArrayLike | None = None,
    B: ArrayLike | None = None,
    noise_cov: ArrayLike | None = None,
    link: str | LinkFunction = "leaky_relu",
    slope: float | None = None,
    num_states: int | None = None,
    spectral_radius: float | None = None,
    matrix_seed: int | None = None,
    state_bounds: ArrayLike | None = None,
    reward: str = "quadratic",
    Q: ArrayLike | None = None,
    R: ArrayLike | None = None,
    initial_covariance: ArrayLike | None = None,
    action_limit: ArrayLike | None = None,
) -> SystemBatch:
    if slope is not None and link != "leaky_relu":
        raise ValueError(f"slope must be None with link={link!r}, which has none, got {slope}; it belongs to 'leaky_relu'.")
    matrices = system_matrices(A, B, num_states, spectral_radius, matrix_seed)
    system = NonlinearSystem(*matrices, noise_cov, link, 0.5 if slope is None else slope)
    return SystemBatch(num_envs, system, state_bounds, reward, Q, R, initial_covariance, action_limit)


class NonlinearSystemEnv(SystemAttributes, BatchEnv):
    """A linear system with a link function, driven by Gaussian noise and by actions.

    ## Description

    The state moves as x' = φ(A x) + B u + w, w ~ N(0, noise_cov); the link φ acts on each coordinate. Without `A` the matrix is
    random: symmetric, with ceil(num_states / 2) eigenvalues equal to `spectral_radius` and the others a third of it, in a random
    basis. Action 0 leaves the system to its noise. `env.unwrapped.system` is the `NonlinearSystem`; its `simulate` makes millions
    of steps per second.

    ## Action Space

    `Box(-action_limit, action_limit, (m,), float32)`; actions outside are clipped.

    | Num       | Action  | Unit | Min           | Max          |
    | --------- | ------- | ---- | ------------- | ------------ |
    | 0 ... m-1 | input u | 1    | -action_limit | action_limit |

    ## Observation Space

    `Box(-inf, inf, (d,), float64)`, the state itself.

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
    | `B`                  | input matrix                                                 | the identity        | (d, m), m >= 1 |
    | `noise_cov`          | covariance of the noise                                      | the identity        | (d, d)         |
    | `link`               | φ: "identity", "leaky_relu", "tanh", or a function of arrays | "leaky_relu"        |                |
    | `slope`              | of "leaky_relu" below 0; not with another link               | 0.5                 | [0, 1]         |
    | `num_states`         | d of a random A                                              | 5                   | >= 1           |
    | `spectral_radius`    | of a random A                                                | 0.9                 | > 0            |
    | `matrix_seed`        | of a random A                                                | 0                   | >= 0           |
    | `state_bounds`       | largest modulus of states, one number or d                   | None: no bounds     | > 0            |
    | `reward`             | "quadratic" or "none"                                        | "quadratic"         |                |
    | `Q`, `R`             | cost of states and inputs; not with reward="none"            | the identity        | (d, d), (m, m) |
    | `initial_covariance` | of the first state                                           | None: first state 0 | (d, d)         |
    | `action_limit`       | one number, or one for each input                            | 1                   | > 0            |
    | `render_mode`        | None, "rgb_array" or "human"                                 | None                |                |

    Raises:
        ValueError: For an argument outside its range, or one that would have no effect.

    References: Kowshik et al., Near-optimal offline and streaming algorithms for learning non-linear dynamical systems,
    NeurIPS 2021, arXiv 2105.11558.

    Example:
        >>> import gymnasium
        >>> env = gymnasium.make("rlopt_envs:rlopt/NonlinearSystem-v0", link="tanh")
        >>> env.reset(seed=0)[0].shape, env.unwrapped.system.link
        ((5,), 'tanh')

    ## Version History

    * v0: first version.
    """

    def __init__(
        self,
        A: ArrayLike | None = None,
        B: ArrayLike | None = None,
        noise_cov: ArrayLike | None = None,
        *,
        link: str | LinkFunction = "leaky_relu",
        slope: float | None = None,
        num_states: int | None = None,
        spectral_radius: float | None = None,
        matrix_seed: int | None = None,
        state_bounds: ArrayLike | None = None,
        reward: str = "quadratic",
        Q: ArrayLike | None = None,
        R: ArrayLike | None = None,
        initial_covariance: ArrayLike | None = None,
        action_limit: ArrayLike | None = None,
        render_mode: str | None = None,
    ) -> None:
        batch = _make_batch(
            1, A, B, noise_cov, link, slope, num_states, spectral_radius, matrix_seed,
            state_bounds, reward, Q, R, initial_covariance, action_limit,
        )  # fmt: skip
        self._system_batch = batch
        super().__init__(batch, batch.picture("Nonlinear system"), render_mode)


class NonlinearSystemVectorEnv(SystemAttributes, BatchVectorEnv):
    """Many copies of `NonlinearSystemEnv`, stepped at once; attributes are those of that class, with `states` for `state`.

    Args:
        num_envs: Copies, >= 1; all have the same matrices.
        max_episode_steps: Steps after which episodes are truncated. None: never.
        render_mode: None or "rgb_array" (one picture for each copy).
        autoreset_mode: "NextStep", "SameStep" or "Disabled", or the `gymnasium.vector.AutoresetMode`.
        **options: The arguments of `NonlinearSystemEnv`.

    Raises:
        ValueError: As `NonlinearSystemEnv`.

    Example:
        >>> env = NonlinearSystemVectorEnv(num_envs=3, num_states=2)
        >>> env.reset(seed=0)[0].shape
        (3, 2)
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
        super().__init__(batch, batch.picture("Nonlinear system"), max_episode_steps, render_mode, autoreset_mode)
