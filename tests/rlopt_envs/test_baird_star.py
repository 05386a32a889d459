import numpy as np
import pytest

from rlopt_envs.baird_star import BairdStarEnv, BairdStarVectorEnv, initial_weights


def unit(index: int) -> np.ndarray:
    return np.eye(15)[index]


def test_features_are_the_documented_ones() -> None:
    features = BairdStarEnv().features
    assert features.shape == (7, 2, 15)
    for i in range(6):
        np.testing.assert_array_equal(features[i, 1], 2 * unit(i) + unit(14))
    np.testing.assert_array_equal(features[6, 1], unit(6) + 2 * unit(14))
    for i in range(7):
        np.testing.assert_array_equal(features[i, 0], unit(7 + i))


def test_first_values_are_at_most_12() -> None:
    env = BairdStarEnv()
    assert env.initial_weights.tolist() == [1.0] * 6 + [10.0] + [1.0] * 8
    assert np.abs(env.features @ env.initial_weights).max() == 12.0
    np.testing.assert_array_equal(BairdStarVectorEnv(2).initial_weights, initial_weights())


def test_nothing_is_worth_anything() -> None:
    assert not BairdStarEnv().optimal_q.any()


def test_the_centre_is_one_action_away_and_acted_in_as_often_as_any_point() -> None:
    env = BairdStarEnv()
    assert env.mdp.transition[3, 1].tolist() == [0.0] * 6 + [1.0]
    np.testing.assert_allclose(env.mdp.transition[3, 0], [1 / 6] * 6 + [0.0])
    np.testing.assert_allclose(env.behaviour_policy, np.tile([6 / 7, 1 / 7], (7, 1)))
    np.testing.assert_allclose(env.mdp.stationary_law(env.behaviour_policy), 1 / 7, atol=1e-12)


def test_star_of_another_size() -> None:
    env = BairdStarEnv(num_states=4, discount=0.9)
    assert env.features.shape == (4, 2, 9)
    assert np.linalg.matrix_rank(env.features.reshape(8, 9)) == 8
    assert initial_weights(4).tolist() == [1.0, 1.0, 1.0, 10.0, 1.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_states": 1}, "num_states must be a whole number >= 2, got 1"),
        ({"discount": 1.2}, r"discount must be in \[0, 1\), got 1.2"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, float], message: str) -> None:
    for make in (BairdStarEnv, BairdStarVectorEnv):
        with pytest.raises(ValueError, match=message):
            make(**arguments)  # type: ignore[arg-type]
