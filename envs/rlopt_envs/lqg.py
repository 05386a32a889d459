"""Linear-quadratic-Gaussian control: as LQR, but only noisy measurements of the state are observed."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import ArrayLike

from rlopt_envs._batch import action_limits
from rlopt_envs._batch_env import BatchEnv, BatchVectorEnv
from rlopt_envs._lqg_batch import Estimator, LQGBatch
from rlopt_envs._regulator import KnownOptimum, Regulator, check_states, check_time_limit, make_model
from rlopt_envs._validation import FloatArray, covariance, output_matrix


class _LQGAttributes(KnownOptimum):
    """What the single and the vectorised environment know of their optimum."""

    def _know(self, batch: LQGBatch) -> None:
        self._regulator, self._lqg = batch.regulator, batch
        self._optimal_cost = batch.estimator.optimal_cost(batch.regulator)

    @property
    def C(self) -> FloatArray:
        """What is measured, (p, d)."""
        return self._lqg.estimator.C

    @property
    def observation_noise_cov(self) -> FloatArray:
        """Covariance of the noise of measurements, (p, p)."""
        return self._lqg.estimator.observation_noise_cov

    @property
    def optimal_cost(self) -> float:
        """Expected cost of the best controller that sees observations and past actions only.

        Of an episode from its start, sum_t discount^t cost_t, without end where the horizon is infinite; or per step for the
        average cost.
        """
        return self._optimal_cost

    def optimal_action(self, kalman_estimate: ArrayLike | None = None) -> FloatArray:
        """Return the optimal action -K x of the present step, before clipping.

        Args:
            kalman_estimate: What is taken for the state x, as in `info`: (d,) of the environment, (num_envs, d) of the vectorised
                one. None: the present estimate.

        Returns:
            (m,), of the vectorised environment (num_envs, m); float64.

        Raises:
            ValueError: For another shape.
        """
        batch = self._lqg
        present = batch.estimates if isinstance(self, BatchVectorEnv) else batch.estimates[0]
        steps = batch.steps if isinstance(self, BatchVectorEnv) else batch.steps[:1].reshape(())
        estimate = present if kalman_estimate is None else check_states("kalman_estimate", kalman_estimate, batch.num_states)
        if estimate.shape != present.shape:
            raise ValueError(f"kalman_estimate must have shape {present.shape}, got {estimate.shape}.")
        return self._regulator.optimal_actions(estimate, steps)


def _make_batch(
    num_envs: int,
    system: str | None,
    A: ArrayLike | None = None,
    B: ArrayLike | None = None,
    C: ArrayLike | None = None,
    Q: ArrayLike | None = None,
    R: ArrayLike | None = None,
    noise_cov: ArrayLike | None = None,
    observation_noise_cov: ArrayLike | None = None,
    cost: str = "discounted",
    discount: float | None = None,
    horizon: int | None = None,
    final_Q: ArrayLike | None = None,
    action_limit: ArrayLike | None = None,
    initial_covariance: ArrayLike | None = None,
) -> LQGBatch:
    model = make_model(system, A, B, noise_cov, Q, R)
    d = model.system.num_states
    regulator = Regulator(model, cost, discount, horizon, final_Q, initial_covariance)
    if model.preset is not None and C is None:
        C = model.preset.C
        observation_noise_cov = model.preset.observation_noise_cov if observation_noise_cov is None else observation_noise_cov
    C = np.eye(d) if C is None else output_matrix(C, d)
    p = len(C)
    noise = np.eye(p) if observation_noise_cov is None else observation_noise_cov
    estimator = Estimator(regulator, C, covariance("observation_noise_cov", noise, p, positive=True))
    default = regulator.default_action_limit(
        estimator.added[0], estimator.added[1:] if len(estimator.added) > 1 else estimator.added
    )
    return LQGBatch(num_envs, regulator, estimator, action_limits(action_limit, default, model.system.num_inputs))


class LQGEnv(_LQGAttributes, BatchEnv):
    """As `LQREnv`, but the state is hidden behind noisy measurements; the optimum is known.

    ## Description

    The state moves as x' = A x + B u + w with w ~ N(0, noise_cov), observed is y = C x + v with v ~ N(0, observation_noise_cov),
    and a step costs x'Qx + u'Ru (here ' transposes). Without limits on the action the best controller is u = -K x̂, where K is the
    gain for an observed state and x̂ the mean of the state given all observations and actions so far, which a Kalman filter
    computes (separation principle). The filter begins with the law of the first state, so x̂ is this mean exactly at all times.
    `env.unwrapped` has `optimal_gain`, `optimal_cost`, `value_matrix`, `optimal_action()`, and `system`, `C`,
    `observation_noise_cov`, `Q`, `R`, `discount`, `horizon`, `initial_covariance`, `state`.

    ## Action Space

    `Box(-action_limit, action_limit, (m,), float32)`; actions outside are clipped. For the default system:

    | Num | Action | Unit | Min           | Max          |
    | --- | ------ | ---- | ------------- | ------------ |
    | 0   | force  | N    | -action_limit | action_limit |

    By default the limit of an input is six times the largest standard deviation that the optimal action has in the episode, from
    the law of the first state on, so that the optimal controller meets it with probability 2e-9 per step.

    ## Observation Space

    `Box(-inf, inf, (p,), float32)`, the measurement y. For the default system:

    | Num | Observation       | Unit | Min  | Max |
    | --- | ----------------- | ---- | ---- | --- |
    | 0   | measured position | m    | -inf | inf |

    With a horizon one entry follows, because the best action then depends on the time:

    | Num | Observation                            | Unit | Min | Max |
    | --- | -------------------------------------- | ---- | --- | --- |
    | p   | share of the episode over, t / horizon | 1    | 0   | 1   |

    ## Rewards

    -(x'Qx + u'Ru) with the state before the step and the clipped action. With a horizon the last reward has the cost of the last
    state too, -discount x'final_Q x, so that the discounted sum of rewards is the negative cost. Range (-inf, 0].

    ## Starting State

    Normal with mean 0 and covariance `initial_covariance`, by default as in `LQREnv`. `reset(options={"initial_state": x})` takes
    a given state instead; the filter does not know it and begins as always.

    ## Episode End

    * Termination: after `horizon` steps; never where the horizon is infinite.
    * Truncation: after 200 steps (`max_episode_steps` of `gymnasium.make`). A horizon above 200 needs a limit that is not smaller,
      as in `gymnasium.make("rlopt/LQG-v0", horizon=500, max_episode_steps=500)`.

    ## Information

    `reset` and `step` return in `info`, about the state that the observation is of:

    | Key               | Meaning                                                      |
    | ----------------- | ------------------------------------------------------------ |
    | `kalman_estimate` | x̂, its mean given all observations and actions so far, (d,) |

    `step` returns as well, about the step that was taken:

    | Key              | Meaning                                                                |
    | ---------------- | ---------------------------------------------------------------------- |
    | `cost`           | the negative reward                                                    |
    | `optimal_action` | -K x̂ with the estimate before the step, (m,)                          |
    | `regret`         | (u + K x̂)'(R + discount B'PB)(u + K x̂) >= 0, with P of the next step |

    The expected discounted sum of the regrets is exactly the cost of the controller that acts minus the optimal cost (for the
    average cost: the long-run mean), for every controller that knows observations and actions only.

    ## Arguments

    Those of `LQREnv`, and

    | Argument                | Meaning                           | Default                               | Range            |
    | ----------------------- | --------------------------------- | ------------------------------------- | ---------------- |
    | `C`                     | what is measured                  | of `system`; with own A identity      | (p, d)           |
    | `observation_noise_cov` | covariance of the measuring noise | of `system`; with own A or C identity | (p, p), definite |

    Raises:
        ValueError: For an argument outside its range, or one that would have no effect.

    References: Anderson and Moore, Optimal Control: Linear Quadratic Methods, 1990; Anderson and Moore, Optimal Filtering, 1979.

    Example:
        >>> import gymnasium
        >>> env = gymnasium.make("rlopt_envs:rlopt/LQG-v0")
        >>> obs, info = env.reset(seed=0)
        >>> obs, reward, terminated, truncated, info = env.step(env.unwrapped.optimal_action())
        >>> info["regret"], obs.shape, info["kalman_estimate"].shape
        (0.0, (1,), (2,))

    ## Version History

    * v0: first version.
    """

    def __init__(
        self,
        system: str | None = None,
        *,
        A: ArrayLike | None = None,
        B: ArrayLike | None = None,
        C: ArrayLike | None = None,
        Q: ArrayLike | None = None,
        R: ArrayLike | None = None,
        noise_cov: ArrayLike | None = None,
        observation_noise_cov: ArrayLike | None = None,
        cost: str = "discounted",
        discount: float | None = None,
        horizon: int | None = None,
        final_Q: ArrayLike | None = None,
        action_limit: ArrayLike | None = None,
        initial_covariance: ArrayLike | None = None,
        render_mode: str | None = None,
    ) -> None:
        batch = _make_batch(
            1, system, A, B, C, Q, R, noise_cov, observation_noise_cov,
            cost, discount, horizon, final_Q, action_limit, initial_covariance,
        )  # fmt: skip
        self._know(batch)
        super().__init__(batch, batch.regulator.picture("LQG"), render_mode)


class LQGVectorEnv(_LQGAttributes, BatchVectorEnv):
    """Many copies of `LQGEnv`, stepped at once; attributes are those of `LQGEnv`, with `states` instead of `state`.

    Args:
        num_envs: Copies, >= 1.
        system: See `LQGEnv`.
        max_episode_steps: Steps after which episodes are truncated, not below the horizon. None: never.
        render_mode: None or "rgb_array" (one picture for each copy).
        autoreset_mode: "NextStep", "SameStep" or "Disabled", or the `gymnasium.vector.AutoresetMode`.
        **options: The other arguments of `LQGEnv`.

    Raises:
        ValueError: As `LQGEnv`.

    Example:
        >>> import gymnasium
        >>> env = gymnasium.make_vec("rlopt_envs:rlopt/LQG-v0", num_envs=3, vectorization_mode="vector_entry_point")
        >>> obs, infos = env.reset(seed=0)
        >>> infos["kalman_estimate"].shape, env.unwrapped.optimal_action().shape
        ((3, 2), (3, 1))
    """

    def __init__(
        self,
        num_envs: int = 1,
        system: str | None = None,
        *,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **options: Any,
    ) -> None:
        batch = _make_batch(num_envs, system, **options)
        check_time_limit(batch.regulator.horizon, max_episode_steps)
        self._know(batch)
        super().__init__(batch, batch.regulator.picture("LQG"), max_episode_steps, render_mode, autoreset_mode)
