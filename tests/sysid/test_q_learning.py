"""Q-learners against twins that meet one transition after the other in plain Python, and on problems with known values."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rlopt.sysid.q_learning import QLearning, QLearningReplay, QRex, QRexDaRe
from rlopt.sysid.transitions import Transitions, collect, tabular_features
from rlopt_envs.baird_star import BairdStarEnv
from rlopt_envs.blind_cliffwalk import BlindCliffwalkEnv, memory
from rlopt_envs.chain import ChainEnv
from rlopt_envs.ring_mdp import RingMDPEnv

Weights = list[float]
NUM_STATES, NUM_ACTIONS, NUM_FEATURES = 5, 3, 4
TABLE = np.random.default_rng(0).normal(size=(NUM_STATES, NUM_ACTIONS, NUM_FEATURES)) / 2
FIRST = [0.5, -1.0, 0.25, 2.0]
DISCOUNT, STEP_SIZE = 0.9, 0.07

# ------------------------------------------------------------------ twins


def dot(features: NDArray[np.float64], weights: Weights) -> float:
    total = 0.0
    for feature, weight in zip(features.tolist(), weights, strict=True):
        total += feature * weight
    return total


def update(weights: Weights, target: Weights, data: Transitions, t: int) -> Weights:
    """One update of w that bootstraps from θ."""
    wanted = float(data.rewards[t])
    if not data.terminated[t]:
        wanted += DISCOUNT * max(dot(TABLE[data.next_observations[t], a], target) for a in range(NUM_ACTIONS))
    phi = TABLE[data.observations[t], data.actions[t]]
    change = STEP_SIZE * (wanted - dot(phi, weights))
    return [weight + change * feature for weight, feature in zip(weights, phi.tolist(), strict=True)]


def buffers(data: Transitions, gap: int, size: int) -> Iterator[tuple[int, list[int]]]:
    """Meet the transitions one by one; yield how many were met when a buffer is closed, and what is retained of it."""
    buffer: list[int] = []
    for t in range(len(data)):
        buffer.append(t)
        if len(buffer) == gap + size or data.ends[t]:
            if len(buffer) > gap:
                yield t + 1, buffer[gap:]
            buffer = []


def in_order(retained: list[int], order: str, rng: np.random.Generator) -> list[int]:
    if order == "random":
        return [retained[int(u * len(retained))] for u in rng.random(len(retained))]
    return retained[::-1] if order == "reverse" else retained


def twin_qrex(data: Transitions, gap: int, size: int, num_buffers: int, order: str) -> list[tuple[int, Weights]]:
    """Transitions met and θ at each renewal."""
    rng, done = np.random.default_rng(3), []
    weights = target = FIRST
    for number, (met, retained) in enumerate(buffers(data, gap, size), start=1):
        for t in in_order(retained, order, rng):
            weights = update(weights, target, data, t)
        if number % num_buffers == 0:
            target = weights
            done.append((met, target))
    return done


def twin_replay(data: Transitions, gap: int, size: int) -> list[tuple[int, Weights]]:
    rng, done, weights = np.random.default_rng(3), [], FIRST
    for met, retained in buffers(data, gap, size):
        for t in in_order(retained, "random", rng):
            weights = update(weights, weights, data, t)
        done.append((met, weights))
    return done


def twin_dare(data: Transitions, gap: int, size: int, num_buffers: int, num_targets: int) -> list[Weights]:
    done = []
    weights = target = FIRST
    for _ in range(num_targets):
        for number, (_, retained) in enumerate(buffers(data, gap, size)):
            if number < num_buffers:
                for t in reversed(retained):
                    weights = update(weights, target, data, t)
        target = weights
        done.append(target)
    return done


def random_data(seed: int, num: int, end_share: float) -> Transitions:
    rng = np.random.default_rng(seed)
    ends = rng.random(num) < end_share
    states = rng.integers(NUM_STATES, size=num + 1)
    return Transitions(
        states[:-1],
        rng.integers(NUM_ACTIONS, size=num),
        rng.normal(size=num),
        np.where(ends, rng.integers(NUM_STATES, size=num), states[1:]),
        ends & (rng.random(num) < 0.5),
        ends,
    )


DATA = st.builds(random_data, st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([0.0, 0.1, 0.4]))
OPTIONS: dict[str, Any] = {"step_size": STEP_SIZE, "initial_weights": FIRST}


def learners(gap: int, size: int, num_buffers: int) -> dict[str, Any]:
    orders: tuple[Any, ...] = ("reverse", "forward", "random")
    made: dict[str, Any] = {
        order: QRex(
            TABLE,
            DISCOUNT,
            buffer_size=size,
            gap=gap,
            num_buffers=num_buffers,
            order=order,
            seed=3 if order == "random" else None,
            **OPTIONS,
        )
        for order in orders
    }
    made["replay"] = QLearningReplay(TABLE, DISCOUNT, buffer_size=size, gap=gap, seed=3, **OPTIONS)
    made["plain"] = QLearning(TABLE, DISCOUNT, **OPTIONS)
    return made


def twin_of(name: str, data: Transitions, gap: int, size: int, num_buffers: int) -> list[tuple[int, Weights]]:
    """Transitions met and weights, wherever the weights change."""
    if name == "plain":
        weights, done = FIRST, []
        for t in range(len(data)):
            weights = update(weights, weights, data, t)
            done.append((t + 1, weights))
        return done
    return twin_replay(data, gap, size) if name == "replay" else twin_qrex(data, gap, size, num_buffers, name)


@given(data=DATA, gap=st.integers(0, 3), size=st.integers(1, 6), num_buffers=st.integers(1, 4))
@settings(deadline=None)
def test_one_pass_learners_equal_their_twins_to_the_bit(data: Transitions, gap: int, size: int, num_buffers: int) -> None:
    for name, learner in learners(gap, size, num_buffers).items():
        expected = twin_of(name, data, gap, size, num_buffers)
        learner.fit(data, num_checkpoints=None)
        assert learner.history_.samples.tolist() == [met for met, _ in expected], name
        assert learner.history_.weights.tolist() == [weights for _, weights in expected], name
        assert learner.weights_.tolist() == (expected[-1][1] if expected else FIRST), name
        assert learner.num_samples_ == len(data)
        if isinstance(learner, QRex):
            assert learner.num_target_updates_ == len(expected)


@given(data=DATA, gap=st.integers(0, 3), size=st.integers(1, 6), num_buffers=st.integers(1, 4))
@settings(deadline=None)
def test_data_reuse_equals_its_twin_to_the_bit(data: Transitions, gap: int, size: int, num_buffers: int) -> None:
    available = list(buffers(data, gap, size))
    learner = QRexDaRe(TABLE, DISCOUNT, buffer_size=size, gap=gap, num_buffers=num_buffers, num_targets=5, **OPTIONS)
    if len(available) < num_buffers:
        with pytest.raises(ValueError, match=f"transitions must fill {num_buffers} buffers"):
            learner.fit(data)
        return
    learner.fit(data, num_checkpoints=None)
    assert learner.history_.weights.tolist() == twin_dare(data, gap, size, num_buffers, 5)
    assert learner.num_samples_ == available[num_buffers - 1][0]
    assert learner.num_updates_ == 5 * sum(len(retained) for _, retained in available[:num_buffers])


@given(data=DATA, cuts=st.lists(st.integers(0, 60), max_size=5), gap=st.integers(0, 3), size=st.integers(1, 6))
@settings(deadline=None)
def test_data_in_pieces_give_the_same_as_at_once(data: Transitions, cuts: list[int], gap: int, size: int) -> None:
    bounds = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    for (name, once), pieces in zip(learners(gap, size, 2).items(), learners(gap, size, 2).values(), strict=True):
        once.fit(data)
        for start, stop in pairwise(bounds):
            pieces.partial_fit(data[start:stop])
        assert pieces.weights_.tolist() == once.weights_.tolist(), name
        assert pieces.num_updates_ == once.num_updates_
        assert pieces.history_.samples.tolist() == bounds[1:]
        for stop, weights in zip(bounds[1:], pieces.history_.weights.tolist(), strict=True):
            assert weights == learners(gap, size, 2)[name].fit(data[:stop]).weights_.tolist()


@pytest.mark.parametrize("announced", [True, False])
def test_a_new_trajectory_in_the_next_piece_closes_the_buffer(announced: bool) -> None:
    first, second = random_data(4, 10, 0.0), random_data(5, 12, 0.0)
    # If it is not announced, it shows in the observation.
    second.observations[0] = first.next_observations[-1] if announced else (first.next_observations[-1] + 1) % NUM_STATES
    joined = Transitions.concatenate([first.ended(), second])
    for pieces, once in zip(learners(1, 4, 2).values(), learners(1, 4, 2).values(), strict=True):
        pieces.partial_fit(first).partial_fit(second, new_trajectory=announced)
        assert pieces.weights_.tolist() == once.fit(joined).weights_.tolist()
        assert pieces.num_updates_ == once.num_updates_


@given(data=DATA, gap=st.integers(0, 2), size=st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_checkpoints_are_what_the_estimate_had_been_if_the_data_had_ended_there(data: Transitions, gap: int, size: int) -> None:
    for name, learner in learners(gap, size, 2).items():
        learner.fit(data, num_checkpoints=6)
        assert learner.history_.samples[-1] == len(data)
        for samples, updates, weights in zip(*learner.history_, strict=True):
            early = learners(gap, size, 2)[name].fit(data[:samples])
            assert weights.tolist() == early.weights_.tolist()
            assert updates == early.num_updates_


def test_a_function_of_features_gives_the_same_as_their_table() -> None:
    data = random_data(1, 200, 0.05)
    for table, function in zip(learners(1, 4, 2).values(), learners(1, 4, 2).values(), strict=True):
        function.features = lambda obs: TABLE[obs]
        assert function.fit(data).weights_.tolist() == table.fit(data).weights_.tolist()
        states = np.arange(NUM_STATES)
        np.testing.assert_array_equal(function.q_values(states), table.q_values(states))
        np.testing.assert_allclose(table.q_values(states), TABLE @ table.weights_, rtol=1e-12)


def test_fit_forgets_and_partial_fit_goes_on() -> None:
    data = random_data(2, 100, 0.1)
    for learner in learners(1, 4, 2).values():
        first = learner.fit(data).weights_.copy()
        assert learner.fit(data).weights_.tolist() == first.tolist()
        assert learner.partial_fit(data).num_samples_ == 200
        assert learner.weights_.tolist() != first.tolist()


# ------------------------------------------------------------------ known cases


def ring_data(num: int, seed: int) -> Transitions:
    return Transitions.from_rollout(RingMDPEnv().mdp.simulate(num, np.random.default_rng(seed)))


def max_error(learner: Any, env: Any) -> float:
    return float(np.abs(learner.q_values(np.arange(env.mdp.num_states)) - env.optimal_q).max())


def test_buffers_of_one_transition_without_gap_are_plain_q_learning() -> None:
    env, data = RingMDPEnv(), ring_data(5000, 0)
    plain = QLearning(env.features, 0.9, step_size=0.05).fit(data)
    rex = QRex(env.features, 0.9, step_size=0.05, buffer_size=1, gap=0, num_buffers=1).fit(data)
    assert rex.weights_.tobytes() == plain.weights_.tobytes()
    assert rex.history_.weights.tobytes() == plain.history_.weights.tobytes()
    assert rex.num_target_updates_ == 5000


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_qrex_converges_on_the_ring_and_renews_its_target_as_often_as_planned(seed: int) -> None:
    env, data = RingMDPEnv(), ring_data(132_000, seed)
    learner = QRex(env.features, 0.9, step_size=0.005, buffer_size=50, gap=5, num_buffers=40).fit(data, num_checkpoints=None)
    assert max_error(learner, env) < 0.2
    assert learner.num_target_updates_ == 60
    assert learner.history_.samples.tolist() == list(range(2200, 132_001, 2200))
    assert len(np.unique(learner.history_.weights, axis=0)) == 60
    assert learner.num_updates_ == 60 * 40 * 50


def test_data_that_fill_no_target_period_leave_the_weights_as_they_were() -> None:
    learner = QRex(RingMDPEnv().features, 0.9, num_buffers=40).fit(ring_data(2199, 0))
    assert learner.num_target_updates_ == 0
    assert learner.num_updates_ == 39 * 50
    assert not learner.weights_.any()
    assert learner.partial_fit(ring_data(1, 1)).num_target_updates_ == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda phi: QRex(phi, 0.9, order="forward"),
        lambda phi: QRex(phi, 0.9, order="random", seed=0),
        lambda phi: QLearning(phi, 0.9, step_size=0.005),
        lambda phi: QLearningReplay(phi, 0.9, step_size=0.005, buffer_size=50, gap=5),
    ],
)
def test_the_other_learners_converge_on_the_ring_too(make: Any) -> None:
    # None of them is worse than Q-Rex here: a small tabular problem does not tell them apart.
    env = RingMDPEnv()
    assert max_error(make(env.features).fit(ring_data(132_000, 0)), env) < 0.2


def star_data(num: int, seed: int) -> Transitions:
    env = BairdStarEnv()
    return Transitions.from_rollout(env.mdp.simulate(num, np.random.default_rng(seed), env.behaviour_policy))


def test_plain_q_learning_diverges_on_the_star() -> None:
    env = BairdStarEnv()
    learner = QLearning(env.features, 0.99, step_size=0.01, initial_weights=env.initial_weights).fit(star_data(100_000, 0))
    assert max_error(learner, env) > 1e6


def test_plain_q_learning_overflows_on_the_star_without_a_warning() -> None:
    env = BairdStarEnv()
    learner = QLearning(env.features, 0.99, step_size=0.05, initial_weights=env.initial_weights).fit(star_data(500_000, 0))
    assert not np.isfinite(learner.weights_).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_qrex_converges_on_the_star_at_its_rate(seed: int) -> None:
    env = BairdStarEnv()
    learner = QRex(env.features, 0.99, step_size=0.01, buffer_size=50, gap=5, num_buffers=40, initial_weights=env.initial_weights)
    learner.fit(star_data(2200 * 140, seed), num_checkpoints=None)
    errors = np.abs(np.einsum("sad,kd->ksa", env.features, learner.history_.weights)).max(axis=(1, 2))
    assert np.all(np.diff(errors[19:]) < 0)
    ratios = errors[39::20] / errors[19:-20:20]
    assert len(ratios) == 6
    assert np.all((ratios > 0.80) & (ratios < 0.87))


def test_data_reuse_settles_at_the_rate_of_the_discount() -> None:
    env, data = RingMDPEnv(), ring_data(22_000, 0)
    learner = QRexDaRe(env.features, 0.9, step_size=0.005, num_buffers=400, num_targets=120).fit(data, num_checkpoints=None)
    steps = np.abs(np.diff(learner.history_.weights, axis=0)).max(axis=1)
    ratios = steps[1:] / steps[:-1]
    np.testing.assert_allclose(ratios[15:], 0.9, atol=0.005)
    assert max_error(learner, env) < 0.25
    assert (learner.num_samples_, learner.num_target_updates_) == (22_000, 120)


def test_data_reuse_settles_at_the_fixed_point_of_a_linear_system() -> None:
    # One target period is affine in (w, θ) once the greedy actions are settled: w' = M w + γ L θ + c. Its fixed point is found by
    # running one period from unit vectors in plain NumPy, not by iterating.
    env, data = RingMDPEnv(), ring_data(2200, 0)
    learner = QRexDaRe(env.features, 0.9, step_size=0.02, num_targets=400).fit(data)
    greedy = (env.features @ learner.weights_).argmax(axis=1)
    phi = env.features[data.observations, data.actions]
    following = env.features[data.next_observations, greedy[data.next_observations]]
    system, constant, along = np.eye(10), np.zeros(10), np.zeros((10, 10))
    for start in range(0, 2200, 55):
        for t in range(start + 54, start + 4, -1):
            shrink = np.eye(10) - 0.02 * np.outer(phi[t], phi[t])
            system, constant = shrink @ system, shrink @ constant + 0.02 * data.rewards[t] * phi[t]
            along = shrink @ along + 0.02 * 0.9 * np.outer(phi[t], following[t])
    np.testing.assert_allclose(learner.weights_, np.linalg.solve(np.eye(10) - system - along, constant), atol=1e-9)


def test_data_reuse_reads_nothing_behind_its_buffers() -> None:
    env = RingMDPEnv()
    clean = ring_data(3 * 55, 0)
    poisoned = Transitions.concatenate([clean, ring_data(500, 1)])
    poisoned.rewards[3 * 55 :] = np.nan
    poisoned.observations[3 * 55 :] = 10**6
    poisoned.next_observations[3 * 55 :] = 10**6
    options: dict[str, Any] = {"num_buffers": 3, "num_targets": 7}
    learner = QRexDaRe(env.features, 0.9, **options).fit(poisoned)
    assert learner.weights_.tolist() == QRexDaRe(env.features, 0.9, **options).fit(clean).weights_.tolist()
    seen = []
    QRexDaRe(lambda obs: (seen.append(obs.max()), env.features[obs])[1], 0.9, **options).fit(poisoned)
    assert max(seen) < 5


def test_a_gap_is_not_learned_from() -> None:
    env, data = RingMDPEnv(), ring_data(55 * 40, 0)
    learner = QRex(env.features, 0.9, num_buffers=1)
    expected = learner.fit(data).weights_.tolist()
    changed = Transitions.concatenate([data])
    skipped = np.arange(len(data)) % 55 < 5
    changed.rewards[skipped] = 1e9
    changed.actions[skipped] = 1 - changed.actions[skipped]
    assert learner.fit(changed).weights_.tolist() == expected
    changed.rewards[5] += 1e-3
    assert learner.fit(changed).weights_.tolist() != expected


def test_nothing_is_bootstrapped_behind_a_terminal_transition() -> None:
    phi = tabular_features(2, 1)
    data = Transitions([0, 0], [0, 0], [1.0, 1.0], [1, 1], [True, False], [True, True])
    first = [0.0, 100.0]
    assert QLearning(phi, 0.5, step_size=1.0, initial_weights=first).fit(data[:1]).weights_.tolist() == [1.0, 100.0]
    assert QLearning(phi, 0.5, step_size=1.0, initial_weights=first).fit(data[1:]).weights_.tolist() == [51.0, 100.0]


def test_updates_until_the_chain_is_known() -> None:
    # Forward and bootstrapped from w: an episode for each state, exact after (n - 1) n + 1 updates. With an exact step and one
    # buffer per target, Q-Rex learns one more state with each target, from the end.
    env = ChainEnv(12, discount=0.5)
    data = collect(env, 12 * 12, seed=0)
    plain = QLearning(env.features, 0.5, step_size=1.0).fit(data, num_checkpoints=None)
    wrong = [not np.array_equal(weights, env.optimal_q[:-1, 0]) for weights in plain.history_.weights]
    assert wrong.index(False) + 1 == 11 * 12 + 1
    rex = QRex(env.features, 0.5, step_size=1.0, buffer_size=12, gap=0, num_buffers=1).fit(data, num_checkpoints=None)
    for known, weights in enumerate(rex.history_.weights, start=1):
        assert weights.tolist() == [0.0] * (12 - known) + env.optimal_q[12 - known : 12, 0].tolist()


def test_the_memory_of_blind_cliffwalk_is_learned() -> None:
    env = BlindCliffwalkEnv(4)
    data = Transitions.concatenate([Transitions.from_rollout(memory(4))] * 100)
    learner = QLearning(env.features, env.discount, step_size=0.25).fit(data)
    np.testing.assert_allclose(learner.q_values(np.arange(5)), env.optimal_q, atol=1e-3)


def test_learning_from_vector_observations_with_a_function_of_features() -> None:
    def features(obs: NDArray[Any]) -> NDArray[np.float64]:
        phi = np.zeros((len(obs), 2, 10))
        phi[:, 0, :5] = phi[:, 1, 5:] = np.concatenate([np.tanh(obs), np.ones((len(obs), 1))], axis=1)
        return phi

    data = collect(gym.make("CartPole-v1"), 2000, seed=0)
    learner = QRex(features, 0.9, step_size=0.02, buffer_size=10, gap=1, num_buffers=5).fit(data)
    values = learner.q_values(data.observations)
    assert values.shape == (2000, 2)
    # Each step is worth 1; episodes of about 20 steps end in 0.
    assert 4.0 < values.mean() < 10.0


# ------------------------------------------------------------------ wrong input


@pytest.mark.parametrize(
    ("learner_class", "options", "message"),
    [
        (QLearning, {"features": np.zeros((2, 3))}, r"features must be a function or a finite table .* got shape \(2, 3\)"),
        (QLearning, {"features": np.full((1, 1, 1), np.nan)}, "features must be a function or a finite table"),
        (QLearning, {"discount": 1.1}, r"discount must be in \[0, 1\], got 1.1"),
        (QLearning, {"step_size": 0.0}, "step_size must be > 0 and finite, got 0.0"),
        (QLearning, {"initial_weights": [1.0]}, r"initial_weights must have shape \(4,\), one for each feature, got \(1,\)"),
        (QLearning, {"initial_weights": [np.inf]}, "initial_weights must be finite"),
        (QLearningReplay, {"buffer_size": 0}, "buffer_size must be a whole number >= 1, got 0"),
        (QLearningReplay, {"gap": -1}, "gap must be a whole number >= 0, got -1"),
        (QRex, {"num_buffers": 0}, "num_buffers must be a whole number >= 1, got 0"),
        (QRex, {"buffer_size": 2.5}, "buffer_size must be a whole number >= 1, got 2.5"),
        (QRex, {"order": "backwards"}, "order must be one of reverse, forward, random, got 'backwards'"),
        (QRex, {"seed": 1}, "seed has no effect with order='reverse'; drop it, or use order='random'"),
        (QRexDaRe, {"num_targets": 0}, "num_targets must be a whole number >= 1, got 0"),
        (QRexDaRe, {"num_buffers": 0}, "num_buffers must be a whole number >= 1, got 0"),
        (QRexDaRe, {"gap": 1.5}, "gap must be a whole number >= 0, got 1.5"),
    ],
)
def test_wrong_options_are_refused(learner_class: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learner_class(**({"features": TABLE, "discount": 0.9} | options))


def test_data_that_do_not_fit_the_features_are_refused() -> None:
    learner = QLearning(TABLE, 0.9)
    with pytest.raises(ValueError, match="q_values must come after fit"):
        learner.q_values([0])
    with pytest.raises(ValueError, match=r"observations must be in \[0, 5\) for this table of features, got 0..7"):
        learner.fit(Transitions([0, 7], [0, 0], [0.0, 0.0], [0, 0]))
    with pytest.raises(ValueError, match=r"observations must be in \[0, 5\) for this table of features, got -1..0"):
        learner.fit(Transitions([0, 0], [0, 0], [0.0, 0.0], [0, -1]))
    with pytest.raises(ValueError, match=r"actions must be in \[0, 3\) for these features, got 3"):
        learner.fit(Transitions([0, 0], [0, 3], [0.0, 0.0], [0, 0]))
    with pytest.raises(ValueError, match=r"observations must be whole numbers of shape \(T,\).*use a function as features"):
        learner.fit(Transitions([[0.5]], [0], [0.0], [[1.0]]))
    with pytest.raises(ValueError, match="num_checkpoints must be a whole number >= 1, got 0"):
        learner.fit(random_data(0, 10, 0.0), num_checkpoints=0)
    with pytest.raises(ValueError, match=r"features must return shape \(1, A, d\), got \(1, 2\)"):
        QLearning(lambda obs: np.zeros((1, 2)), 0.9).fit(random_data(0, 1, 0.0))
    with pytest.raises(ValueError, match="features must be finite, got 6 numbers"):
        QLearning(lambda obs: np.full((1, 2, 3), np.nan), 0.9).fit(random_data(0, 1, 0.0))
    with pytest.raises(ValueError, match=r"initial_weights must have shape \(3,\)"):
        QLearning(lambda obs: np.zeros((1, 3, 3)), 0.9, initial_weights=[1.0]).fit(random_data(0, 1, 0.0))


def test_features_that_change_their_number_are_refused() -> None:
    learner = QLearning(lambda obs: np.zeros((len(obs), 3, len(obs))), 0.9).partial_fit(random_data(0, 4, 0.0))
    with pytest.raises(ValueError, match="features must have the same d as before, 4, got 5"):
        learner.partial_fit(random_data(0, 5, 0.0))
