from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from rlopt_envs.baird_star import BairdStarEnv, BairdStarVectorEnv
from rlopt_envs.blind_cliffwalk import BlindCliffwalkEnv, BlindCliffwalkVectorEnv
from rlopt_envs.chain import ChainEnv, ChainVectorEnv
from rlopt_envs.finite_mdp import FiniteMDP, cumulative, invert
from rlopt_envs.finite_mdp_env import FiniteMDPEnv, FiniteMDPVectorEnv, FiniteProblem, pair_features
from rlopt_envs.ring_mdp import RingMDPEnv, RingMDPVectorEnv

PAIRS = [
    (ChainEnv, ChainVectorEnv),
    (BlindCliffwalkEnv, BlindCliffwalkVectorEnv),
    (RingMDPEnv, RingMDPVectorEnv),
    (BairdStarEnv, BairdStarVectorEnv),
]
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]


def random_mdp(
    seed: int, num_states: int = 6, num_actions: int = 3, num_terminal: int = 1, by_transition: bool = True
) -> FiniteMDP:
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.full(num_states, 0.5), size=(num_states, num_actions))
    reward = rng.normal(size=transition.shape if by_transition else transition.shape[:2])
    terminal = np.arange(num_states) >= num_states - num_terminal
    return FiniteMDP(transition, reward, rng.uniform(0.3, 0.99), terminal)


# ------------------------------------------------------------------ exact values


@given(seed=st.integers(0, 10**6), num_terminal=st.integers(0, 2), by_transition=st.booleans())
@settings(max_examples=30, deadline=None)
def test_value_iteration_equals_policy_iteration(seed: int, num_terminal: int, by_transition: bool) -> None:
    mdp = random_mdp(seed, num_terminal=num_terminal, by_transition=by_transition)
    policy = np.eye(3)[np.zeros(6, int)]
    for _ in range(50):
        policy = np.eye(3)[mdp.policy_value(policy).argmax(axis=1)]
    np.testing.assert_allclose(mdp.value_iteration(), mdp.policy_value(policy), atol=2e-12 * 100, rtol=1e-9)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_policy_value_solves_the_bellman_equation_written_out(seed: int) -> None:
    mdp = random_mdp(seed)
    policy = np.random.default_rng(seed).dirichlet(np.ones(3), size=6)
    q = mdp.policy_value(policy)
    for s in range(5):
        for a in range(3):
            value = 0.0
            for t in range(6):
                following = 0.0 if mdp.terminal[t] else mdp.discount * float(policy[t] @ q[t])
                value += mdp.transition[s, a, t] * (mdp.reward[s, a, t] + following)
            assert q[s, a] == pytest.approx(value, abs=1e-10)
    assert np.all(q[5] == 0)


@pytest.mark.parametrize("num_terminal", [0, 2])
def test_stationary_law_is_the_eigenvector_of_the_restarted_chain(num_terminal: int) -> None:
    mdp = random_mdp(3, num_terminal=num_terminal)
    policy = np.random.default_rng(0).dirichlet(np.ones(3), size=6)
    live = 6 - num_terminal
    chain = np.zeros((live, live))
    for s in range(live):
        for t in range(6):
            mass = float(policy[s] @ mdp.transition[s, :, t])
            if mdp.terminal[t]:
                chain[s] += mass * mdp.initial[:live]
            else:
                chain[s, t] += mass
    law = mdp.stationary_law(policy)
    np.testing.assert_allclose(law[:live], np.linalg.matrix_power(chain, 5000)[0], atol=1e-10)
    assert law[live:].sum() == 0


def test_stationary_law_that_depends_on_the_start_is_refused() -> None:
    mdp = FiniteMDP(np.eye(2)[:, None, :], np.zeros((2, 1)), 0.5)
    with pytest.raises(ValueError, match="policy must have a single stationary law"):
        mdp.stationary_law()


def test_endless_rewards_without_discount_are_refused() -> None:
    mdp = FiniteMDP([[[1.0]]], [[1.0]], 1.0)
    with pytest.raises(ValueError, match="with discount 1"):
        mdp.policy_value()
    episodic = FiniteMDP([[[0.5, 0.5]], [[0.0, 1.0]]], [[1.0], [0.0]], 1.0, [False, True])
    assert episodic.value_iteration()[0, 0] == pytest.approx(2.0, abs=1e-10)
    assert episodic.policy_value()[0, 0] == pytest.approx(2.0, abs=1e-12)


GOOD: dict[str, Any] = {"transition": np.full((2, 1, 2), 0.5), "reward": np.zeros((2, 1)), "discount": 0.5}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"transition": np.zeros((2, 3))}, r"transition must have shape \(S, A, S\), got \(2, 3\)"),
        ({"reward": np.zeros(2)}, r"reward must be finite and have shape \(2, 1\) or \(2, 1, 2\), got \(2,\)"),
        ({"reward": np.full((2, 1), np.nan)}, "reward must be finite"),
        ({"discount": 1.5}, r"discount must be in \[0, 1\], got 1.5"),
        ({"transition": np.full((2, 1, 2), 0.4)}, "transition must hold probabilities that sum to 1"),
        ({"transition": np.tile([1.5, -0.5], (2, 1, 1))}, r"transition must hold probabilities .*\[1.5, -0.5\]"),
        ({"terminal": [True, True]}, "terminal must be of dtype bool"),
        ({"terminal": [0, 1]}, "terminal must be of dtype bool"),
        ({"initial": [1.0]}, r"initial must have shape \(2,\), got \(1,\)"),
        ({"terminal": [False, True], "initial": [0.5, 0.5]}, "initial must be 0 in terminal states"),
        ({"initial": [0.5, 0.4]}, "initial must hold probabilities"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FiniteMDP(**(GOOD | wrong))


def test_wrong_policies_and_numbers_are_refused() -> None:
    mdp = FiniteMDP(**GOOD)
    with pytest.raises(ValueError, match=r"policy must have shape \(2, 1\), got \(1, 1\)"):
        mdp.policy_value([[1.0]])
    with pytest.raises(ValueError, match="policy must hold probabilities"):
        mdp.policy_value([[0.5], [1.0]])
    with pytest.raises(ValueError, match="tolerance must be > 0"):
        mdp.value_iteration(0.0)
    with pytest.raises(ValueError, match="num_steps must be >= 1"):
        mdp.simulate(0, np.random.default_rng(0))


def test_the_arrays_of_a_process_cannot_be_changed() -> None:
    mdp = FiniteMDP(**GOOD)
    with pytest.raises(ValueError, match="read-only"):
        mdp.transition[0] = 0.0


# ------------------------------------------------------------------ simulation


def test_simulation_has_the_frequencies_of_the_process() -> None:
    mdp = random_mdp(7)
    policy = np.random.default_rng(1).dirichlet(np.ones(3), size=6)
    rollout = mdp.simulate(400_000, np.random.default_rng(2), policy)
    # The visits are correlated: 6 standard errors of independent ones are generous enough.
    law = np.bincount(rollout.states[:-1], minlength=6) / 400_000
    np.testing.assert_allclose(law, mdp.stationary_law(policy), atol=6 * 0.5 / np.sqrt(400_000))
    counts = np.zeros((6, 3, 6))
    np.add.at(counts, (rollout.states[:-1], rollout.actions, rollout.next_states), 1)
    for s in range(5):
        visits = counts[s].sum()
        np.testing.assert_allclose(counts[s].sum(axis=1) / visits, policy[s], atol=6 * 0.5 / np.sqrt(visits))
        for a in range(3):
            taken = counts[s, a].sum()
            np.testing.assert_allclose(counts[s, a] / taken, mdp.transition[s, a], atol=6 * 0.5 / np.sqrt(taken))


def test_simulation_is_consistent_in_every_step_and_independent_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    mdp = random_mdp(8)
    rollout = mdp.simulate(5000, np.random.default_rng(3))
    np.testing.assert_array_equal(rollout.terminated, mdp.terminal[rollout.next_states])
    goes_on = ~rollout.terminated
    np.testing.assert_array_equal(rollout.states[1:][goes_on], rollout.next_states[goes_on])
    assert not mdp.terminal[rollout.states].any()
    np.testing.assert_array_equal(rollout.rewards, mdp.reward[rollout.states[:-1], rollout.actions, rollout.next_states])
    monkeypatch.setattr("rlopt_envs.finite_mdp._BLOCK", 7)
    for one, other in zip(rollout, mdp.simulate(5000, np.random.default_rng(3)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_values_of_probability_zero_are_never_drawn() -> None:
    law = np.array([0.1] * 10 + [0.0])  # sums to 1 - 1e-16 in floating point
    assert np.cumsum(law)[-1] < 1.0
    assert invert(cumulative(law), np.array([np.nextafter(1.0, 0.0)])).tolist() == [9]
    assert invert(cumulative(np.array([0.0, 1.0])), np.array([0.0])).tolist() == [1]


# ------------------------------------------------------------------ environments


@pytest.mark.parametrize("env_class", [one for one, _ in PAIRS])
def test_environment_passes_gymnasiums_checks(env_class: type[FiniteMDPEnv]) -> None:
    check_env(env_class(), skip_render_check=True)


@pytest.mark.parametrize("env_class", [one for one, _ in PAIRS])
def test_environment_follows_its_process(env_class: Any) -> None:
    env = env_class()
    env.action_space.seed(0)
    state, _ = env.reset(seed=0)
    counts = np.zeros(env.mdp.transition.shape)
    rewards = np.zeros(env.mdp.transition.shape)
    for _ in range(4000):
        action = int(env.action_space.sample())
        following, reward, terminated, truncated, _ = env.step(action)
        counts[state, action, following] += 1
        rewards[state, action, following] = reward
        assert terminated == env.mdp.terminal[following]
        assert not truncated
        state = env.reset()[0] if terminated else following
    np.testing.assert_array_equal(rewards[counts > 0], np.broadcast_to(env.mdp.reward[..., None], counts.shape)[counts > 0])
    visits = counts.sum(axis=2, keepdims=True)
    assert np.all(np.abs(counts - visits * env.mdp.transition) <= 5 * 0.5 * np.sqrt(visits) + 1e-9)


def test_wrong_use_of_an_environment_gives_one_sentence() -> None:
    env = ChainEnv(num_states=1)
    with pytest.raises(ValueError, match="step must come after reset"):
        env.step(0)
    env.reset()
    with pytest.raises(ValueError, match=r"action must be a whole number in \[0, 1\), got 1"):
        env.step(1)
    env.step(0)
    with pytest.raises(ValueError, match="not after the end of an episode"):
        env.step(0)
    with pytest.raises(ValueError, match="render_mode must be one of 'human', 'rgb_array', got 'ansi'"):
        ChainEnv(render_mode="ansi")


def test_features_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features must be finite and have shape .* got \(2, 2\)"):
        FiniteProblem(FiniteMDP(**GOOD), features=np.zeros((2, 2)))


def test_pair_features_leave_out_terminal_states() -> None:
    features = pair_features(random_mdp(0, num_states=4, num_actions=2, num_terminal=1))
    assert features.shape == (4, 2, 6)
    np.testing.assert_array_equal(features[:3].reshape(6, 6), np.eye(6))
    assert not features[3].any()


# ------------------------------------------------------------------ vectorised environments


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("max_episode_steps", [None, 3, 4])
def test_vectorised_chain_equals_synchronous_copies(mode: AutoresetMode, max_episode_steps: int | None) -> None:
    # Nothing is random in the chain, so both must agree in every step, resets included.
    def make() -> gym.Env[Any, Any]:
        env: gym.Env[Any, Any] = ChainEnv(num_states=4)
        return env if max_episode_steps is None else gym.wrappers.TimeLimit(env, max_episode_steps)

    vector = ChainVectorEnv(3, num_states=4, max_episode_steps=max_episode_steps, autoreset_mode=mode)
    copies = SyncVectorEnv([make] * 3, autoreset_mode=mode)
    np.testing.assert_array_equal(vector.reset(seed=0)[0], copies.reset(seed=0)[0])
    for _ in range(15):
        actions = np.zeros(3, np.int64)
        mine, theirs = vector.step(actions), copies.step(actions)
        for one, other in zip(mine[:4], theirs[:4], strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
        assert mine[4].keys() == theirs[4].keys()
        for key in ("final_obs", "_final_obs", "_final_info"):
            if key in mine[4]:
                np.testing.assert_array_equal(mine[4][key], theirs[4][key])
        assert vector.observation_space.contains(mine[0])


@pytest.mark.parametrize(("env_class", "vector_class"), PAIRS)
def test_vectorised_environment_has_the_frequencies_of_its_process(env_class: Any, vector_class: Any) -> None:
    vector, mdp = vector_class(50, autoreset_mode="SameStep"), env_class().mdp
    np.testing.assert_array_equal(vector.mdp.transition, mdp.transition)
    np.testing.assert_array_equal(vector.optimal_q, env_class().optimal_q)
    rng = np.random.default_rng(0)
    obs, _ = vector.reset(seed=1)
    counts = np.zeros(mdp.transition.shape)
    for _ in range(300):
        actions = rng.integers(mdp.num_actions, size=50)
        following, rewards, terminated, _, infos = vector.step(actions)
        final = np.where(terminated, infos["final_obs"], following).astype(int) if terminated.any() else following
        np.testing.assert_array_equal(rewards, mdp.reward[obs, actions])
        np.testing.assert_array_equal(terminated, mdp.terminal[final])
        np.add.at(counts, (obs, actions, final), 1)
        obs = following
    visits = counts.sum(axis=2, keepdims=True)
    assert np.all(np.abs(counts - visits * mdp.transition) <= 5 * 0.5 * np.sqrt(visits) + 1e-9)


def test_vectorised_environment_reads_rewards_of_transitions() -> None:
    mdp = random_mdp(11, num_terminal=0)
    vector = FiniteMDPVectorEnv(20, FiniteProblem(mdp))
    obs, _ = vector.reset(seed=0)
    actions = np.arange(20) % 3
    following, rewards, *_ = vector.step(actions)
    np.testing.assert_array_equal(rewards, mdp.reward[obs, actions, following])


def test_disabled_autoreset_asks_for_a_masked_reset() -> None:
    vector = ChainVectorEnv(2, num_states=2, autoreset_mode=AutoresetMode.DISABLED)
    vector.reset(seed=0)
    vector.step(np.zeros(2, np.int64))
    obs, _, terminated, _, _ = vector.step(np.zeros(2, np.int64))
    assert obs.tolist() == [2, 2]
    assert terminated.all()
    vector.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(ValueError, match="step must come after reset"):
        vector.step(np.zeros(2, np.int64))
    obs, _ = vector.reset(options={"reset_mask": np.array([False, True])})
    assert obs.tolist() == [0, 0]
    assert vector.step(np.zeros(2, np.int64))[0].tolist() == [1, 1]


def test_the_mode_of_one_vectorised_environment_is_not_that_of_its_class() -> None:
    assert ChainVectorEnv(1, autoreset_mode="SameStep").metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert ChainVectorEnv(1).metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert ChainVectorEnv.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


def test_equal_seeds_give_equal_steps() -> None:
    runs = []
    for _ in range(2):
        vector = RingMDPVectorEnv(8)
        steps = [vector.reset(seed=5)[0]]
        steps += [vector.step(np.zeros(8, np.int64))[0] for _ in range(20)]
        runs.append(np.array(steps))
    np.testing.assert_array_equal(*runs)
    assert len(np.unique(runs[0])) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs must be a whole number >= 1, got 0"),
        ({"max_episode_steps": 0}, "max_episode_steps must be a whole number >= 1, got 0"),
        ({"autoreset_mode": "never"}, "autoreset_mode must be one of 'NextStep', 'SameStep', 'Disabled', got 'never'"),
        ({"render_mode": "human"}, "render_mode must be one of 'rgb_array', got 'human'"),
    ],
)
def test_wrong_arguments_of_a_vectorised_environment_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChainVectorEnv(**arguments)


@pytest.mark.parametrize("actions", [np.zeros(3, int), np.zeros(2), np.array([0, 1]), np.array([0, -1])])
def test_wrong_actions_of_a_vectorised_environment_are_refused(actions: Any) -> None:
    vector = ChainVectorEnv(2)
    vector.reset()
    with pytest.raises(ValueError, match=r"actions must be 2 whole numbers in \[0, 1\)"):
        vector.step(actions)


def test_a_wrong_reset_mask_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reset_mask must be an array of dtype bool and shape \(2,\)"):
        ChainVectorEnv(2).reset(options={"reset_mask": np.array([1, 0])})


# ------------------------------------------------------------------ pictures


@pytest.mark.parametrize(("env_class", "vector_class"), PAIRS)
def test_pictures_show_where_the_agent_is(env_class: Any, vector_class: Any) -> None:
    env = env_class(render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    assert before.dtype == np.uint8
    assert before.ndim == 3
    assert before.shape[2] == 3
    for _ in range(50):  # the ring and the star may stay where they are
        env.step(env.mdp.num_actions - 1)
        if not np.array_equal(before, env.render()):
            break
    assert not np.array_equal(before, env.render())
    vector = vector_class(2, render_mode="rgb_array")
    vector.reset(seed=0)
    assert [picture.shape for picture in vector.render()] == [before.shape] * 2
    assert env_class().render() is None
