import numpy as np
import pytest

from rlopt_envs.ring_mdp import RingMDPEnv, RingMDPVectorEnv

# Known to ten digits.
OPTIMAL = [
    [5.3246753247, 5.3246753247],
    [4.2363002851, 4.6753246753],
    [3.8294343967, 4.7149192271],
    [4.1114210002, 4.1399290775],
    [4.6753246753, 3.8223073773],
]


def test_optimal_values_are_the_known_ones() -> None:
    env = RingMDPEnv()
    np.testing.assert_allclose(env.optimal_q, OPTIMAL, atol=1e-9)
    assert env.optimal_q[0, 0] == pytest.approx(410 / 77, abs=1e-9)


def test_optimal_values_equal_a_linear_solve_for_the_best_policy() -> None:
    # Best actions: in 1 and 2 back (to 0, collecting 0.5 in 2), in 3 back as well, in 4 on; in 0 both are equal.
    env = RingMDPEnv()
    ahead, back = np.roll(np.eye(5), 1, axis=1), np.roll(np.eye(5), -1, axis=1)
    step = 0.8 * np.where(np.array([1, 0, 0, 0, 1])[:, None] == 1, ahead, back) + 0.2 * np.eye(5)
    values = np.linalg.solve(np.eye(5) - 0.9 * step, [1.0, 0.0, 0.5, 0.0, 0.0])
    np.testing.assert_allclose(env.optimal_q.max(axis=1), values, atol=1e-9)


def test_transitions_and_rewards() -> None:
    mdp = RingMDPEnv().mdp
    assert mdp.transition[4, 0].tolist() == [0.8, 0.0, 0.0, 0.0, 0.2]
    assert mdp.transition[0, 1].tolist() == [0.2, 0.0, 0.0, 0.0, 0.8]
    assert mdp.reward.tolist() == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.5], [0.0, 0.0], [0.0, 0.0]]
    np.testing.assert_allclose(mdp.stationary_law(), 0.2, atol=1e-12)


def test_ring_without_slips_and_of_another_size() -> None:
    env = RingMDPEnv(num_states=8, discount=0.5, slip=0.0)
    assert env.mdp.transition[7, 0, 0] == 1.0
    # From 1 back to 0: 0.5 V(0), and V(0) = 1 + 0.5 V(1).
    assert env.optimal_q[0, 0] == pytest.approx(1 + 0.5 * env.optimal_q[1].max(), abs=1e-11)
    assert env.optimal_q[1, 1] == pytest.approx(2 / 3, abs=1e-11)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_states": 2}, "num_states must be a whole number >= 3, got 2"),
        ({"discount": 1.0}, r"discount must be in \[0, 1\), got 1.0"),
        ({"slip": 1.0}, r"slip must be in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, float], message: str) -> None:
    for make in (RingMDPEnv, RingMDPVectorEnv):
        with pytest.raises(ValueError, match=message):
            make(**arguments)  # type: ignore[arg-type]
