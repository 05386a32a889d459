"""States on a ring that an agent walks around with slips."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlopt_envs._validation import count
from rlopt_envs.finite_mdp import FiniteMDP
from rlopt_envs.finite_mdp_env import FiniteMDPEnv, FiniteMDPVectorEnv, FiniteProblem, check_discount


def ring_mdp(num_states: int = 5, discount: float = 0.9, slip: float = 0.2) -> FiniteProblem:
    """Return the problem; arguments are those of `RingMDPEnv`.

    Raises:
        ValueError: For an argument outside its range.
    """
    num_states = count("num_states", num_states, 3)
    if not 0.0 <= slip < 1.0:
        raise ValueError(f"slip must be in [0, 1), got {slip}.")
    states = np.arange(num_states)
    transition = np.zeros((num_states, 2, num_states))
    for action, direction in enumerate((1, -1)):
        transition[states, action, (states + direction) % num_states] = 1.0 - slip
        transition[states, action, states] = slip
    reward = np.zeros((num_states, 2))
    reward[0] = 1.0
    reward[2, 1] = 0.5
    return FiniteProblem(FiniteMDP(transition, reward, check_discount(discount)))


class RingMDPEnv(FiniteMDPEnv):
    """A walk around a ring without an end.

    ## Description

    `num_states` states lie on a ring, 0, 1, ..., clockwise. An action is a step to a neighbour that fails with probability `slip`;
    the agent then stays where it is. The problem is small, ergodic under every policy that takes both actions, and known: with
    the default arguments the uniform policy is in all states equally often and Q*(0, ·) = 410/77.

    ## Action Space

    `Discrete(2)`

    | Num | Action                             |
    | --- | ---------------------------------- |
    | 0   | one step clockwise, s + 1          |
    | 1   | one step anticlockwise, s - 1      |

    ## Observation Space

    `Discrete(num_states)`: the state, without unit, from 0 to num_states - 1.

    ## Rewards

    1 in state 0 whatever the action, 0.5 in state 2 for action 1, else 0. Range [0, 1].

    ## Starting State

    Uniform on all states.

    ## Episode End

    * Termination: never.
    * Truncation: never, unless `max_episode_steps` is given to `gymnasium.make`.

    ## Information

    `env.unwrapped` has `mdp`, `optimal_q` (num_states, 2), `features` (num_states, 2, 2·num_states; one coordinate for each pair),
    `behaviour_policy` (uniform) and `discount`. Infos are empty.

    ## Arguments

    | Argument      | Meaning                                  | Default | Range    |
    | ------------- | ---------------------------------------- | ------- | -------- |
    | `num_states`  | states of the ring                       | 5       | >= 3     |
    | `discount`    | γ of the optimal values                  | 0.9     | [0, 1)   |
    | `slip`        | probability that a step fails            | 0.2     | [0, 1)   |
    | `render_mode` | None, "rgb_array" or "human"             | None    |          |

    Raises:
        ValueError: For an argument outside its range.

    Example:
        >>> env = RingMDPEnv()
        >>> env.optimal_q[0].round(10).tolist()
        [5.3246753247, 5.3246753247]

    ## Version History

    * v0: first version. The problem is rlopt's own.
    """

    def __init__(self, num_states: int = 5, discount: float = 0.9, slip: float = 0.2, *, render_mode: str | None = None) -> None:
        super().__init__(ring_mdp(num_states, discount, slip), render_mode)


class RingMDPVectorEnv(FiniteMDPVectorEnv):
    """Many copies of `RingMDPEnv`, stepped at once; see `FiniteMDPVectorEnv`.

    Args:
        num_envs: Copies, >= 1.
        num_states: See `RingMDPEnv`.
        discount: See `RingMDPEnv`.
        slip: See `RingMDPEnv`.
        **options: See `FiniteMDPVectorEnv`: `max_episode_steps`, `render_mode`, `autoreset_mode`.
    """

    def __init__(self, num_envs: int = 1, num_states: int = 5, discount: float = 0.9, slip: float = 0.2, **options: Any) -> None:
        super().__init__(num_envs, ring_mdp(num_states, discount, slip), **options)
