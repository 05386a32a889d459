"""A star in the manner of Baird's: Q-learning with linear features diverges although exact values can be represented."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlopt_envs._validation import count
from rlopt_envs.finite_mdp import FiniteMDP, FloatArray
from rlopt_envs.finite_mdp_env import FiniteMDPEnv, FiniteMDPVectorEnv, FiniteProblem, check_discount, circle

AWAY, CENTRE = 0, 1


def baird_star(num_states: int = 7, discount: float = 0.99) -> FiniteProblem:
    """Return the problem; arguments are those of `BairdStarEnv`.

    Raises:
        ValueError: For an argument outside its range.
    """
    num_states = count("num_states", num_states, 2)
    centre = num_states - 1
    transition = np.zeros((num_states, 2, num_states))
    transition[:, AWAY, :centre] = 1.0 / centre
    transition[:, CENTRE, centre] = 1.0
    mdp = FiniteMDP(transition, np.zeros((num_states, 2)), check_discount(discount))
    states = np.arange(num_states)
    features = np.zeros((num_states, 2, 2 * num_states + 1))
    features[states, CENTRE, states] = 2.0
    features[states, CENTRE, -1] = 1.0
    features[centre, CENTRE, centre], features[centre, CENTRE, -1] = 1.0, 2.0
    features[states, AWAY, num_states + states] = 1.0
    behaviour = np.tile([1.0 - 1.0 / num_states, 1.0 / num_states], (num_states, 1))
    positions = np.concatenate([circle(centre), np.zeros((1, 2))])
    return FiniteProblem(mdp, features, behaviour, positions)


def initial_weights(num_states: int = 7) -> FloatArray:
    """Return the weights from which Q-learning diverges, (2·num_states + 1,): 1, and 10 for the centre's own coordinate."""
    weights = np.ones(2 * count("num_states", num_states, 2) + 1)
    weights[num_states - 1] = 10.0
    return weights


class BairdStarEnv(FiniteMDPEnv):
    """A star without rewards on which semi-gradient Q-learning diverges.

    ## Description

    n = `num_states` states: n - 1 points and a centre, number n - 1. Action 1 leads to the centre, action 0 to a point drawn
    uniformly. There are no rewards, so Q* = 0, and weights 0 represent it exactly. With the linear features below, the behaviour
    policy, and weights that begin at `rlopt_envs.baird_star.initial_weights()`, Q-learning that bootstraps from its newest weights
    nevertheless grows without bound. With e_j the j-th unit vector of R^(2n+1), counted from 0:

        φ(s, 1) = 2 e_s + e_2n  for points,      φ(n - 1, 1) = e_(n-1) + 2 e_2n,      φ(s, 0) = e_(n+s).

    ## Action Space

    `Discrete(2)`

    | Num | Action                                        | Behaviour policy |
    | --- | --------------------------------------------- | ---------------- |
    | 0   | to one of the points, uniformly               | 1 - 1/n          |
    | 1   | to the centre                                 | 1/n              |

    ## Observation Space

    `Discrete(num_states)`: the state, without unit, from 0 to num_states - 1, the centre.

    ## Rewards

    Always 0.

    ## Starting State

    Uniform on all states.

    ## Episode End

    * Termination: never.
    * Truncation: never, unless `max_episode_steps` is given to `gymnasium.make`.

    ## Information

    `env.unwrapped` has `mdp`, `optimal_q` (n, 2), `features` (n, 2, 2n + 1), `behaviour_policy` (n, 2), `initial_weights` (2n + 1,)
    and `discount`. Infos are empty.

    ## Arguments

    | Argument      | Meaning                                  | Default | Range    |
    | ------------- | ---------------------------------------- | ------- | -------- |
    | `num_states`  | n, points and centre                     | 7       | >= 2     |
    | `discount`    | γ of the optimal values                  | 0.99    | [0, 1)   |
    | `render_mode` | None, "rgb_array" or "human"             | None    |          |

    Raises:
        ValueError: For an argument outside its range.

    Example:
        >>> env = BairdStarEnv()
        >>> env.features.shape, float(abs(env.features @ env.initial_weights).max())
        ((7, 2, 15), 12.0)

    ## Differences

    Baird's star is about the values of one policy; here each state has two actions and Q-learning is the learner.

    ## References

    Baird, Residual algorithms: Reinforcement learning with function approximation, ICML 1995.

    ## Version History

    * v0: first version.
    """

    def __init__(self, num_states: int = 7, discount: float = 0.99, *, render_mode: str | None = None) -> None:
        super().__init__(baird_star(num_states, discount), render_mode)
        self.initial_weights = initial_weights(num_states)


class BairdStarVectorEnv(FiniteMDPVectorEnv):
    """Many copies of `BairdStarEnv`, stepped at once; see `FiniteMDPVectorEnv`.

    Args:
        num_envs: Copies, >= 1.
        num_states: See `BairdStarEnv`.
        discount: See `BairdStarEnv`.
        **options: See `FiniteMDPVectorEnv`: `max_episode_steps`, `render_mode`, `autoreset_mode`.
    """

    def __init__(self, num_envs: int = 1, num_states: int = 7, discount: float = 0.99, **options: Any) -> None:
        super().__init__(num_envs, baird_star(num_states, discount), **options)
        self.initial_weights = initial_weights(num_states)
