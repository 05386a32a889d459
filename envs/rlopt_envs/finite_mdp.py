"""Finite Markov decision processes: exact values and fast simulation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_BLOCK = 1 << 16  # steps simulated with one draw of random numbers
_MAX_SWEEPS = 1_000_000
_ROUNDING = 1e-9  # how far probabilities may be from summing to 1


class Rollout(NamedTuple):
    """Steps of one stream of experience, in time order; a terminated episode is followed by a new one.

    Attributes:
        states: (T+1,) int64. `states[t]` is the state in which step t is taken; the last one is where step T would be taken.
        actions: (T,) int64.
        rewards: (T,) float64.
        next_states: (T,) int64. Where step t led to: `states[t+1]`, except where the episode terminated.
        terminated: (T,) bool. Whether step t led to a terminal state; then `states[t+1]` is a new initial state.
    """

    states: IntArray
    actions: IntArray
    rewards: FloatArray
    next_states: IntArray
    terminated: BoolArray


@dataclass(frozen=True, eq=False, init=False)
class FiniteMDP:
    """A Markov decision process with S states and A actions, all of it known.

    The optimal values solve Q(s,a) = r(s,a) + γ Σ_s' P(s'|s,a) V(s'), V(s') = max_a' Q(s',a'), with V = 0 in terminal states.

    Args:
        transition: P(s'|s,a), (S, A, S); each `transition[s, a]` sums to 1. Rows of terminal states are not used.
        reward: Expected reward r(s,a), (S, A), or reward r(s,a,s') of each transition, (S, A, S).
        discount: γ in [0, 1].
        terminal: Which states end an episode, (S,) bool; none by default.
        initial: Law of the first state, (S,), 0 in terminal states; by default uniform on the states that are not terminal.

    Raises:
        ValueError: For a wrong shape, probabilities that are negative or do not sum to 1, or a discount outside [0, 1].

    Example: two states; action 1 leads to state 1, where each step pays 1.
        >>> mdp = FiniteMDP([[[1, 0], [0, 1]], [[1, 0], [0, 1]]], reward=[[0, 0], [1, 1]], discount=0.5)
        >>> mdp.value_iteration().round(6).tolist()
        [[0.5, 1.0], [1.5, 2.0]]
    """

    transition: FloatArray
    reward: FloatArray
    discount: float
    terminal: BoolArray
    initial: FloatArray

    def __init__(
        self,
        transition: ArrayLike,
        reward: ArrayLike,
        discount: float,
        terminal: ArrayLike | None = None,
        initial: ArrayLike | None = None,
    ) -> None:
        transition, reward = np.array(transition, np.float64), np.array(reward, np.float64)
        if transition.ndim != 3 or transition.shape[0] != transition.shape[2] or 0 in transition.shape:
            raise ValueError(f"transition must have shape (S, A, S), got {transition.shape}; entry [s, a, t] is P(t | s, a).")
        num_states, num_actions, _ = transition.shape
        if reward.shape not in ((num_states, num_actions), transition.shape) or not np.isfinite(reward).all():
            raise ValueError(
                f"reward must be finite and have shape {(num_states, num_actions)} or {transition.shape}, got {reward.shape}; "
                f"it goes with a transition of shape {transition.shape}."
            )
        if not 0.0 <= discount <= 1.0:
            raise ValueError(f"discount must be in [0, 1], got {discount}.")
        ends = np.zeros(num_states, bool) if terminal is None else np.array(terminal)
        if ends.shape != (num_states,) or ends.dtype != bool or ends.all():
            raise ValueError(
                f"terminal must be of dtype bool and shape ({num_states},) with a state that is not terminal, got {ends.tolist()}."
            )
        first = ~ends / np.count_nonzero(~ends) if initial is None else np.array(initial, np.float64)
        if first.shape != (num_states,):
            raise ValueError(f"initial must have shape ({num_states},), got {first.shape}; it is a probability for each state.")
        if np.any(first[ends] != 0):
            raise ValueError(f"initial must be 0 in terminal states, got {first.tolist()}.")
        _check_law(first[None], "initial")
        _check_law(transition[~ends].reshape(-1, num_states), "transition")
        for array in (transition, reward, ends, first):
            array.setflags(write=False)
        for name, value in zip(self.__dataclass_fields__, (transition, reward, float(discount), ends, first), strict=True):
            object.__setattr__(self, name, value)

    @property
    def num_states(self) -> int:
        """S, terminal states included."""
        return int(self.transition.shape[0])

    @property
    def num_actions(self) -> int:
        """A."""
        return int(self.transition.shape[1])

    @cached_property
    def expected_reward(self) -> FloatArray:
        """r(s,a), (S, A), 0 in terminal states."""
        by_action = self.reward if self.reward.ndim == 2 else np.einsum("sat,sat->sa", self.transition, self.reward)
        return np.where(self.terminal[:, None], 0.0, by_action)

    @cached_property
    def _continuing(self) -> FloatArray:
        """P(s'|s,a) without terminal states on either side, (S, A, S)."""
        return np.where(self.terminal | self.terminal[:, None, None], 0.0, self.transition)

    # ------------------------------------------------------------------ exact values

    def value_iteration(self, tolerance: float = 1e-12) -> FloatArray:
        """Return the optimal values Q*(s,a), (S, A), 0 in terminal states.

        Args:
            tolerance: Bound on the error of each value, > 0, as far as rounding allows; with discount 1 a bound on the change
                in the last sweep.

        Raises:
            ValueError: If `tolerance` is not positive, or the values do not converge, as with discount 1 and endless rewards.
        """
        if not tolerance > 0.0:
            raise ValueError(f"tolerance must be > 0, got {tolerance}.")
        # After a change of c the error is at most c γ / (1 - γ). A change as small as the rounding cannot shrink any more.
        factor = self.discount / (1.0 - self.discount) if self.discount < 1.0 else 1.0
        q = np.zeros_like(self.expected_reward)
        for _ in range(_MAX_SWEEPS):
            new: FloatArray = self.expected_reward + self.discount * (self._continuing @ q.max(axis=1))
            change = float(np.abs(new - q).max())
            q = new
            if change * factor <= tolerance or change <= 2 * np.finfo(np.float64).eps * float(np.abs(q).max()):
                return q
        raise ValueError(f"value_iteration must converge within {_MAX_SWEEPS} sweeps; use a discount below {self.discount}.")

    def policy_value(self, policy: ArrayLike | None = None) -> FloatArray:
        """Return the values Q(s,a) of a policy, (S, A), by a linear solve.

        Args:
            policy: Probability of each action in each state, (S, A); uniform by default.

        Raises:
            ValueError: For a wrong policy, or if the values are infinite (discount 1 and no way to a terminal state).
        """
        policy = self.check_policy(policy)
        matrix = np.eye(self.num_states) - self.discount * np.einsum("sa,sat->st", policy, self._continuing)
        try:
            values = np.linalg.solve(matrix, np.einsum("sa,sa->s", policy, self.expected_reward))
        except np.linalg.LinAlgError:
            raise ValueError(
                "policy must reach a terminal state from everywhere with discount 1; use a smaller discount."
            ) from None
        return np.asarray(self.expected_reward + self.discount * (self._continuing @ values), np.float64)

    def stationary_law(self, policy: ArrayLike | None = None) -> FloatArray:
        """Return how often each state is acted in, (S,), in the long run; after a terminal state a new episode begins.

        Args:
            policy: Probability of each action in each state, (S, A); uniform by default.

        Raises:
            ValueError: For a wrong policy, or if the law depends on the first state.
        """
        policy = self.check_policy(policy)
        step = np.einsum("sa,sat->st", policy, self.transition)
        step = step * ~self.terminal + step[:, self.terminal].sum(axis=1, keepdims=True) * self.initial
        live = np.flatnonzero(~self.terminal)
        balance = np.eye(len(live)) - step[np.ix_(live, live)].T
        if np.linalg.matrix_rank(balance) < len(live) - 1:
            raise ValueError("policy must have a single stationary law; this one has several, by where it starts.")
        # One balance equation follows from the others: the sum of all probabilities takes its place.
        balance[-1] = 1.0
        law = np.zeros(self.num_states)
        law[live] = np.linalg.solve(balance, np.eye(len(live))[-1])
        return law

    def check_policy(self, policy: ArrayLike | None) -> FloatArray:
        """Return a policy as an array (S, A), the uniform one for None.

        Raises:
            ValueError: If it is no probability of each action in each state.
        """
        shape = (self.num_states, self.num_actions)
        if policy is None:
            return np.full(shape, 1.0 / self.num_actions)
        policy = np.asarray(policy, np.float64)
        if policy.shape != shape:
            raise ValueError(f"policy must have shape {shape}, got {policy.shape}; entry [s, a] is the probability of a in s.")
        _check_law(policy, "policy")
        return policy

    # ------------------------------------------------------------------ simulation

    def simulate(self, num_steps: int, rng: np.random.Generator, policy: ArrayLike | None = None) -> Rollout:
        """Simulate `num_steps` steps of a policy, episode after episode.

        Args:
            num_steps: T >= 1.
            rng: Source of all randomness; the result depends on its state only.
            policy: Probability of each action in each state, (S, A); uniform by default.

        Raises:
            ValueError: For a number of steps below 1 or a wrong policy.

        Example:
            >>> mdp = FiniteMDP([[[0, 1]], [[0, 1]]], [[1.0], [0.0]], 0.9, terminal=[False, True])
            >>> rollout = mdp.simulate(3, np.random.default_rng(0))
            >>> rollout.states.tolist(), rollout.next_states.tolist(), rollout.rewards.tolist()
            ([0, 0, 0, 0], [1, 1, 1], [1.0, 1.0, 1.0])
        """
        if num_steps < 1:
            raise ValueError(f"num_steps must be >= 1, got {num_steps}.")
        policies, transitions, initial = (
            cumulative(self.check_policy(policy)),
            cumulative(self.transition),
            cumulative(self.initial),
        )
        reward = np.broadcast_to(self.reward[..., None] if self.reward.ndim == 2 else self.reward, self.transition.shape)
        rollout = Rollout(
            np.empty(num_steps + 1, np.int64),
            np.empty(num_steps, np.int64),
            np.empty(num_steps),
            np.empty(num_steps, np.int64),
            np.empty(num_steps, bool),
        )
        rollout.states[0] = invert(initial, np.array(rng.random()))
        for start in range(0, num_steps, _BLOCK):
            uniforms = rng.random((min(_BLOCK, num_steps - start), 3))  # of action, transition, first state
            _simulate(policies, transitions, initial, reward, self.terminal, uniforms, start, *rollout)
        return rollout


def cumulative(law: FloatArray) -> FloatArray:
    """Return cumulative probabilities along the last axis that are exactly 1 from the last possible value on.

    Without that, rounding could let a draw just below 1 choose a value of probability 0.
    """
    total = np.cumsum(law, axis=-1)
    after = np.flip(np.cumsum(np.flip(law, -1), axis=-1), -1)  # probability of this value or a later one
    still_possible = np.concatenate([after[..., 1:], np.zeros_like(after[..., :1])], axis=-1) > 0
    return np.where(still_possible, total, 1.0)


def invert(cumulative_law: FloatArray, uniform: FloatArray) -> IntArray:
    """Return the values (N...,) that uniform numbers in [0, 1) of shape (N...,) choose from laws of shape (N..., n) or (n,)."""
    return np.asarray(np.count_nonzero(cumulative_law <= uniform[..., None], axis=-1))


@numba.njit(cache=True)
def _simulate(
    policies: Any,
    transitions: Any,
    initial: Any,
    reward: Any,
    terminal: Any,
    uniforms: Any,
    start: int,
    states: Any,
    actions: Any,
    rewards: Any,
    next_states: Any,
    terminated: Any,
) -> None:
    state = states[start]
    for i in range(uniforms.shape[0]):
        t = start + i
        action = np.searchsorted(policies[state], uniforms[i, 0], side="right")
        following = np.searchsorted(transitions[state, action], uniforms[i, 1], side="right")
        actions[t] = action
        rewards[t] = reward[state, action, following]
        next_states[t] = following
        terminated[t] = terminal[following]
        state = np.searchsorted(initial, uniforms[i, 2], side="right") if terminal[following] else following
        states[t + 1] = state


def _check_law(rows: FloatArray, name: str) -> None:
    if np.any(rows < 0) or not np.allclose(rows.sum(axis=-1), 1.0, rtol=0.0, atol=_ROUNDING):
        worst = rows[np.argmax(np.abs(rows.sum(axis=-1) - 1.0) + (rows < 0).any(axis=-1))]
        raise ValueError(f"{name} must hold probabilities that sum to 1 along its last axis, got {worst.tolist()}.")
