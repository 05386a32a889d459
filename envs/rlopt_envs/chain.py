"""A chain of states with its reward at the end: values must travel against time."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlopt_envs._validation import count
from rlopt_envs.finite_mdp import FiniteMDP
from rlopt_envs.finite_mdp_env import FiniteMDPEnv, FiniteMDPVectorEnv, FiniteProblem, check_discount, line


def chain(num_states: int = 12, discount: float = 0.9) -> FiniteProblem:
    """Return the problem; arguments are those of `ChainEnv`.

    Raises:
        ValueError: For an argument outside its range.
    """
    num_states = count("num_states", num_states, 1)
    transition = np.eye(num_states + 1, k=1)
    transition[-1, -1] = 1.0
    reward = np.zeros((num_states + 1, 1))
    reward[num_states - 1] = 1.0
    terminal = np.arange(num_states + 1) == num_states
    initial = np.eye(num_states + 1)[0]
    mdp = FiniteMDP(transition[:, None, :], reward, check_discount(discount), terminal, initial)
    return FiniteProblem(mdp, positions=line(num_states + 1))


class ChainEnv(FiniteMDPEnv):
    """A walk from one end of a chain to the other, with the reward in the last step.

    ## Description

    From state s the only action leads to s + 1. The last of the `num_states` steps pays 1 and terminates. Nothing is random and
    nothing is to be decided: the chain shows how fast a value travels back from the end. The optimal values are
    Q*(k) = γ^(num_states - 1 - k). A learner that meets the steps in the order in which they are taken needs an episode for each
    state; one that meets them newest first needs a single episode.

    ## Action Space

    `Discrete(1)`

    | Num | Action                     |
    | --- | -------------------------- |
    | 0   | one step on, s + 1         |

    ## Observation Space

    `Discrete(num_states + 1)`: the state, without unit, from 0 to num_states; the last one is terminal.

    ## Rewards

    1 for the step out of state num_states - 1, else 0. Range [0, 1].

    ## Starting State

    State 0.

    ## Episode End

    * Termination: after num_states steps.
    * Truncation: never.

    ## Information

    `env.unwrapped` has `mdp`, `optimal_q` (num_states + 1, 1), `features` (num_states + 1, 1, num_states; one coordinate for each
    state, none for the terminal one), `behaviour_policy` and `discount`. Infos are empty.

    ## Arguments

    | Argument      | Meaning                                       | Default | Range    |
    | ------------- | --------------------------------------------- | ------- | -------- |
    | `num_states`  | steps of an episode                           | 12      | >= 1     |
    | `discount`    | γ of the optimal values                       | 0.9     | [0, 1)   |
    | `render_mode` | None, "rgb_array" or "human"                  | None    |          |

    Raises:
        ValueError: For an argument outside its range.

    Example:
        >>> ChainEnv(num_states=3, discount=0.5).optimal_q[:, 0].tolist()
        [0.25, 0.5, 1.0, 0.0]

    ## Version History

    * v0: first version. The problem is rlopt's own.
    """

    def __init__(self, num_states: int = 12, discount: float = 0.9, *, render_mode: str | None = None) -> None:
        super().__init__(chain(num_states, discount), render_mode)


class ChainVectorEnv(FiniteMDPVectorEnv):
    """Many copies of `ChainEnv`, stepped at once; see `FiniteMDPVectorEnv`.

    Args:
        num_envs: Copies, >= 1.
        num_states: See `ChainEnv`.
        discount: See `ChainEnv`.
        **options: See `FiniteMDPVectorEnv`: `max_episode_steps`, `render_mode`, `autoreset_mode`.
    """

    def __init__(self, num_envs: int = 1, num_states: int = 12, discount: float = 0.9, **options: Any) -> None:
        super().__init__(num_envs, chain(num_states, discount), **options)
