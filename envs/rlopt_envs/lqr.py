"""Linear-quadratic regulation: a linear system with a quadratic cost, the state observed."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import ArrayLike

from rlopt_envs._batch import Batch, Infos, Observations, action_limits
from rlopt_envs._batch_env import BatchEnv, BatchVectorEnv
from rlopt_envs._regulator import KnownOptimum, Regulator, check_states, check_time_limit, make_model
from rlopt_envs._validation import BoolArray, FloatArray, quadratic
from rlopt_envs.systems import symmetric_root


class RegulatorBatch(Batch):
    """Copies of a linear-quadratic problem whose controller sees the state.

    Args:
        num_envs: Copies N.
        regulator: The problem.
        num_observations: Entries of an observation, without that of the time.
        action_limit: (m,).
    """

    def __init__(self, num_envs: int, regulator: Regulator, num_observations: int, action_limit: FloatArray) -> None:
        low, high = np.full(num_observations, -np.inf, np.float32), np.full(num_observations, np.inf, np.float32)
        if regulator.horizon is not None:  # the share of the episode that is over
            low, high = np.append(low, np.float32(0.0)), np.append(high, np.float32(1.0))
        super().__init__(num_envs, regulator.system.num_states, spaces.Box(low, high, dtype=np.float32), action_limit)
        self.regulator = regulator
        self.num_draws = self.num_first_draws = regulator.system.num_states
        self._initial_factor = symmetric_root(regulator.initial_covariance)
        self._final_Q = None if regulator.horizon is None else regulator.value_matrices[-1]

    def _first_states(self, draws: FloatArray) -> FloatArray:
        return draws @ self._initial_factor

    def known(self) -> FloatArray:
        """Return what the optimal controller takes for the states, (N, d)."""
        return self.states

    def advance(self, actions: FloatArray, draws: FloatArray) -> tuple[FloatArray, BoolArray, Infos]:
        """Step all copies, see `Batch`."""
        regulator = self.regulator
        optimal = regulator.optimal_actions(self.known(), self.steps)
        regrets = regulator.regrets_of(actions - optimal, self.steps)
        costs = regulator.costs_of(self.states, actions)
        self.states = regulator.system.next_states(self.states, actions, draws @ regulator.system.noise_factor)
        self.steps += 1
        if self._final_Q is None or regulator.horizon is None:
            terminated = np.zeros(self.num_envs, np.bool_)
        else:
            terminated = self.steps >= regulator.horizon
            costs += terminated * regulator.discount * quadratic(self.states, self._final_Q)
        return -costs, terminated, {"cost": costs, "regret": regrets, "optimal_action": optimal}

    def observe(self) -> Observations:
        """Return the observations, (N, d), with a horizon (N, d + 1)."""
        return self.with_time(self.states)

    def with_time(self, values: FloatArray) -> Observations:
        """Return values as float32, with the share of the episode that is over beside them where there is a horizon."""
        if self.regulator.horizon is None:
            return values.astype(np.float32)
        result = np.empty((self.num_envs, values.shape[1] + 1), np.float32)
        result[:, :-1] = values
        result[:, -1] = self.steps / self.regulator.horizon
        return result


class _LQRAttributes(KnownOptimum):
    """What the single and the vectorised environment know of their optimum."""

    def _know(self, batch: RegulatorBatch) -> None:
        self._regulator = batch.regulator
        self._optimal_cost = batch.regulator.optimal_cost()

    @property
    def optimal_cost(self) -> float:
        """Expected cost of the optimal controller: of an episode from its start, or per step for the average cost.

        Of an episode means sum_t discount^t cost_t, without end where the horizon is infinite.
        """
        return self._optimal_cost

    def optimal_action(self, observation: ArrayLike) -> FloatArray:
        """Return the optimal action -K x, before clipping.

        Args:
            observation: (..., d), with a horizon (..., d + 1).

        Returns:
            (..., m) float64.

        Raises:
            ValueError: For another shape.
        """
        regulator, d = self._regulator, self._regulator.system.num_states
        if regulator.horizon is None:
            return regulator.optimal_actions(check_states("observation", observation, d), np.zeros((), np.int64))
        values = check_states("observation", observation, d + 1)
        return regulator.optimal_actions(values[..., :-1], np.rint(values[..., -1] * regulator.horizon).astype(np.int64))


def _make_batch(
    num_envs: int,
    system: str | None,
    A: ArrayLike | None = None,
    B: ArrayLike | None = None,
    Q: ArrayLike | None = None,
    R: ArrayLike | None = None,
    noise_cov: ArrayLike | None = None,
    cost: str = "discounted",
    discount: float | None = None,
    horizon: int | None = None,
    final_Q: ArrayLike | None = None,
    action_limit: ArrayLike | None = None,
    initial_covariance: ArrayLike | None = None,
) -> RegulatorBatch:
    model = make_model(system, A, B, noise_cov, Q, R)
    regulator = Regulator(model, cost, discount, horizon, final_Q, initial_covariance)
    default = regulator.default_action_limit(regulator.initial_covariance, model.system.noise_cov[None])
    limits = action_limits(action_limit, default, model.system.num_inputs)
    return RegulatorBatch(num_envs, regulator, model.system.num_states, limits)


class LQREnv(_LQRAttributes, BatchEnv):
    """A linear system with Gaussian noise that is to be held at rest at least quadratic cost; the optimum is known.

    ## Description

    The state moves as x' = A x + B u + w with w ~ N(0, noise_cov), and a step costs x'Qx + u'Ru (here ' transposes). Without limits
    on the action the best controller is u = -K x; K, the value matrix P and the cost follow from Riccati equations. Costs are
    discounted and summed over an infinite horizon (episodes are then truncated, not terminated), averaged, or summed over a finite
    horizon, with a gain for each step. `env.unwrapped` has `optimal_gain`, `optimal_cost`, `value_matrix` and
    `optimal_action(observation)`, and `system`, `Q`, `R`, `discount`, `horizon`, `initial_covariance`, `state`.

    ## Action Space

    `Box(-action_limit, action_limit, (m,), float32)`; actions outside are clipped. For the default system:

    | Num | Action | Unit | Min           | Max          |
    | --- | ------ | ---- | ------------- | ------------ |
    | 0   | force  | N    | -action_limit | action_limit |

    By default the limit of an input is six times the largest standard deviation that the optimal action has in the episode, from
    the law of the first state on, so that the optimal controller meets it with probability 2e-9 per step.

    ## Observation Space

    `Box(-inf, inf, (d,), float32)`, the state. For the default system:

    | Num | Observation | Unit | Min  | Max |
    | --- | ----------- | ---- | ---- | --- |
    | 0   | position    | m    | -inf | inf |
    | 1   | velocity    | m/s  | -inf | inf |

    With a horizon one entry follows, because the best action then depends on the time:

    | Num | Observation                            | Unit | Min | Max |
    | --- | -------------------------------------- | ---- | --- | --- |
    | d   | share of the episode over, t / horizon | 1    | 0   | 1   |

    ## Rewards

    -(x'Qx + u'Ru) with the state before the step and the clipped action. With a horizon the last reward has the cost of the last
    state too, -discount x'final_Q x, so that the discounted sum of rewards is the negative cost. Range (-inf, 0].

    ## Starting State

    Normal with mean 0 and covariance `initial_covariance`. By default it is as if noise had pushed four times as hard as usual: 16
    times the covariance in the long run under the controller of least average cost; the identity if there is no noise.
    `reset(options={"initial_state": x})` takes a given state instead.

    ## Episode End

    * Termination: after `horizon` steps; never where the horizon is infinite.
    * Truncation: after 200 steps (`max_episode_steps` of `gymnasium.make`). A horizon above 200 needs a limit that is not smaller,
      as in `gymnasium.make("rlopt/LQR-v0", horizon=500, max_episode_steps=500)`.

    ## Information

    `step` returns in `info`, about the step that was taken:

    | Key              | Meaning                                                              |
    | ---------------- | -------------------------------------------------------------------- |
    | `cost`           | the negative reward                                                  |
    | `optimal_action` | -K x of the state before the step, (m,)                              |
    | `regret`         | (u + K x)'(R + discount B'PB)(u + K x) >= 0, with P of the next step |

    The regret is what u costs more than -K x if everything after it is optimal. Its expected discounted sum is exactly the cost of
    the controller that acts minus the optimal cost (for the average cost: the long-run mean), and it varies less than a difference
    of returns.

    ## Arguments

    | Argument             | Meaning                                | Default                       | Range                   |
    | -------------------- | -------------------------------------- | ----------------------------- | ----------------------- |
    | `system`             | name in `rlopt_envs.PRESETS`           | "double_integrator" without A |                         |
    | `A`, `B`             | matrices of an own system              | of `system`                   | (d, d), (d, m), m >= 1  |
    | `Q`, `R`             | cost of states and inputs              | of `system`, else identity    | (d, d), (m, m)          |
    | `noise_cov`          | covariance of the noise                | of `system`, else identity    | (d, d)                  |
    | `cost`               | "discounted" or "average"              | "discounted"                  |                         |
    | `discount`           | of the next cost; not with "average"   | 0.99                          | (0, 1), horizon: (0, 1] |
    | `horizon`            | steps of an episode                    | None: infinite                | >= 1                    |
    | `final_Q`            | of the last state; with a horizon only | Q                             | (d, d)                  |
    | `action_limit`       | one number, or one for each input      | see Action Space              | > 0                     |
    | `initial_covariance` | covariance of the first state          | see Starting State            | (d, d)                  |
    | `render_mode`        | None, "rgb_array" or "human"           | None                          |                         |

    Raises:
        ValueError: For an argument outside its range, or one that would have no effect.

    References: Anderson and Moore, Optimal Control: Linear Quadratic Methods, 1990.

    Example:
        >>> import gymnasium
        >>> env = gymnasium.make("rlopt_envs:rlopt/LQR-v0")
        >>> obs, info = env.reset(seed=0)
        >>> obs, reward, terminated, truncated, info = env.step(env.unwrapped.optimal_action(obs))
        >>> bool(info["regret"] < 1e-9), env.unwrapped.optimal_gain.shape
        (True, (1, 2))

    ## Version History

    * v0: first version.
    """

    def __init__(
        self,
        system: str | None = None,
        *,
        A: ArrayLike | None = None,
        B: ArrayLike | None = None,
        Q: ArrayLike | None = None,
        R: ArrayLike | None = None,
        noise_cov: ArrayLike | None = None,
        cost: str = "discounted",
        discount: float | None = None,
        horizon: int | None = None,
        final_Q: ArrayLike | None = None,
        action_limit: ArrayLike | None = None,
        initial_covariance: ArrayLike | None = None,
        render_mode: str | None = None,
    ) -> None:
        batch = _make_batch(
            1, system, A, B, Q, R, noise_cov, cost, discount, horizon, final_Q, action_limit, initial_covariance
        )  # fmt: skip
        self._know(batch)
        super().__init__(batch, batch.regulator.picture("LQR"), render_mode)


class LQRVectorEnv(_LQRAttributes, BatchVectorEnv):
    """Many copies of `LQREnv`, stepped at once; attributes are those of `LQREnv`, with `states` instead of `state`.

    Args:
        num_envs: Copies, >= 1.
        system: See `LQREnv`.
        max_episode_steps: Steps after which episodes are truncated, not below the horizon. None: never.
        render_mode: None or "rgb_array" (one picture for each copy).
        autoreset_mode: "NextStep", "SameStep" or "Disabled", or the `gymnasium.vector.AutoresetMode`.
        **options: The other arguments of `LQREnv`.

    Raises:
        ValueError: As `LQREnv`.

    Example:
        >>> import gymnasium
        >>> env = gymnasium.make_vec("rlopt_envs:rlopt/LQR-v0", num_envs=3, vectorization_mode="vector_entry_point")
        >>> obs, infos = env.reset(seed=0)
        >>> env.step(env.unwrapped.optimal_action(obs))[1].shape
        (3,)
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
        super().__init__(batch, batch.regulator.picture("LQR"), max_episode_steps, render_mode, autoreset_mode)
