"""Blind Cliffwalk: a reward behind a row of decisions of which each wrong one ends the episode."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlopt_envs._validation import count
from rlopt_envs.finite_mdp import FiniteMDP, Rollout
from rlopt_envs.finite_mdp_env import FiniteMDPEnv, FiniteMDPVectorEnv, FiniteProblem, check_discount, line

WRONG, RIGHT = 0, 1
_MOST_STATES_OF_MEMORY = 24  # 2^25 transitions, about 1 GB


def blind_cliffwalk(num_states: int = 6, discount: float | None = None) -> FiniteProblem:
    """Return the problem; arguments are those of `BlindCliffwalkEnv`.

    Raises:
        ValueError: For an argument outside its range.
    """
    num_states = count("num_states", num_states, 1)
    discount = 1.0 - 1.0 / num_states if discount is None else check_discount(discount)
    end = num_states
    transition = np.zeros((num_states + 1, 2, num_states + 1))
    transition[:, WRONG, end] = 1.0
    transition[np.arange(num_states), RIGHT, np.arange(1, num_states + 1)] = 1.0
    transition[end, RIGHT, end] = 1.0
    reward = np.zeros((num_states + 1, 2))
    reward[num_states - 1, RIGHT] = 1.0
    terminal = np.arange(num_states + 1) == end
    initial = np.eye(num_states + 1)[0]
    mdp = FiniteMDP(transition, reward, discount, terminal, initial)
    return FiniteProblem(mdp, positions=line(num_states + 1))


def memory(num_states: int = 6) -> Rollout:
    """Return the transitions of all 2^n sequences of n = `num_states` actions, each run until its episode ends.

    State i occurs 2^(n-i-1) times with each action; 2^(n+1) - 2 transitions in all, a single one of which has a reward. Uniform
    draws from this memory find that one in 2^(n+1) - 2 draws on average.

    Args:
        num_states: n, in [1, 24].

    Raises:
        ValueError: If `num_states` is outside its range.

    Example:
        >>> rollout = memory(2)
        >>> rollout.states.tolist(), rollout.actions.tolist(), rollout.rewards.tolist()
        ([0, 0, 0, 1, 0, 1, 0], [0, 0, 1, 0, 1, 1], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    """
    if count("num_states", num_states, 1) > _MOST_STATES_OF_MEMORY:
        raise ValueError(
            f"num_states must be at most {_MOST_STATES_OF_MEMORY}, got {num_states}: the memory has 2^(n+1) - 2 entries."
        )
    num_sequences = 1 << num_states
    sequences = np.arange(num_sequences)
    # The episode of a sequence lasts up to its first wrong action: its number of leading 1 bits, plus 1 unless all are 1.
    num_right = np.zeros(num_sequences, np.int64)
    for i in range(num_states):
        num_right += (sequences >> (num_states - 1 - i)) == (1 << (i + 1)) - 1
    lengths = np.minimum(num_right + 1, num_states)
    ends = np.cumsum(lengths)
    states = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    actions = (np.repeat(num_right, lengths) > states).astype(np.int64)
    last = actions * (states == num_states - 1)  # the step that is rewarded
    terminated = (actions == WRONG) | (last == 1)
    next_states = np.where(terminated, num_states, states + 1)
    return Rollout(np.append(states, 0), actions, last.astype(np.float64), next_states, terminated)


class BlindCliffwalkEnv(FiniteMDPEnv):
    """A row of decisions, each of which ends the episode unless it is right.

    ## Description

    In each of `num_states` states one action is right and leads on; the other ends the episode without reward. Only the last
    right action is rewarded, so random actions are rewarded in one of 2^num_states episodes. The optimal values are
    Q*(i, right) = γ^(num_states - 1 - i) and Q*(i, wrong) = 0. `rlopt_envs.blind_cliffwalk.memory` makes the memory of all
    action sequences.

    ## Action Space

    `Discrete(2)`

    | Num | Action                     |
    | --- | -------------------------- |
    | 0   | wrong, the end             |
    | 1   | right, s + 1               |

    ## Observation Space

    `Discrete(num_states + 1)`: the state, without unit, from 0 to num_states; the last one is terminal.

    ## Rewards

    1 for the right action in state num_states - 1, else 0. Range [0, 1].

    ## Starting State

    State 0.

    ## Episode End

    * Termination: after a wrong action, or after num_states right ones.
    * Truncation: never.

    ## Information

    `env.unwrapped` has `mdp`, `optimal_q` (num_states + 1, 2), `features` (num_states + 1, 2, 2·num_states; one coordinate for each
    pair, none for the terminal state), `behaviour_policy` (uniform) and `discount`. Infos are empty.

    ## Arguments

    | Argument      | Meaning                                                    | Default | Range    |
    | ------------- | ---------------------------------------------------------- | ------- | -------- |
    | `num_states`  | decisions                                                  | 6       | >= 1     |
    | `discount`    | γ of the optimal values; None is 1 - 1/num_states          | None    | [0, 1)   |
    | `render_mode` | None, "rgb_array" or "human"                               | None    |          |

    Raises:
        ValueError: For an argument outside its range.

    Example:
        >>> BlindCliffwalkEnv(num_states=2).optimal_q.tolist()
        [[0.0, 0.5], [0.0, 1.0], [0.0, 0.0]]

    ## References

    Schaul et al., Prioritized experience replay, ICLR 2016, arXiv 1511.05952.

    ## Version History

    * v0: first version.
    """

    def __init__(self, num_states: int = 6, discount: float | None = None, *, render_mode: str | None = None) -> None:
        super().__init__(blind_cliffwalk(num_states, discount), render_mode)


class BlindCliffwalkVectorEnv(FiniteMDPVectorEnv):
    """Many copies of `BlindCliffwalkEnv`, stepped at once; see `FiniteMDPVectorEnv`.

    Args:
        num_envs: Copies, >= 1.
        num_states: See `BlindCliffwalkEnv`.
        discount: See `BlindCliffwalkEnv`.
        **options: See `FiniteMDPVectorEnv`: `max_episode_steps`, `render_mode`, `autoreset_mode`.
    """

    def __init__(self, num_envs: int = 1, num_states: int = 6, discount: float | None = None, **options: Any) -> None:
        super().__init__(num_envs, blind_cliffwalk(num_states, discount), **options)
