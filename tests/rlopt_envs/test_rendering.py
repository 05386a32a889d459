import sys
import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled
from matplotlib.figure import Figure

import rlopt_envs  # noqa: F401  (registers)
from rlopt_envs.rendering import HISTORY_LENGTH, HumanWindow, SystemPicture, figure_to_rgb

SHAPE = (360, 800, 3)
TASKS: list[tuple[str, dict[str, Any]]] = [
    ("rlopt/LinearSystem-v0", {}),
    ("rlopt/LinearSystem-v0", {"num_states": 1}),
    ("rlopt/NonlinearSystem-v0", {"num_states": 2}),
    ("rlopt/LQR-v0", {}),
    ("rlopt/LQG-v0", {"system": "mass_spring_damper_chain"}),
]


@pytest.fixture
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def test_a_figure_becomes_its_pixels() -> None:
    figure = Figure(figsize=(2, 1), dpi=50, facecolor=(1.0, 0.0, 0.0))
    rgb = figure_to_rgb(figure)
    assert (rgb.shape, rgb.dtype) == ((50, 100, 3), np.uint8)
    assert (rgb == [255, 0, 0]).all()


@pytest.mark.parametrize(("env_id", "options"), TASKS)
def test_pictures_show_what_happens(env_id: str, options: dict[str, Any]) -> None:
    env = gym.make(env_id, render_mode="rgb_array", **options)
    env.reset(seed=0)
    pictures = []
    for _ in range(3):
        pictures.append(env.render())
        env.step(env.action_space.sample())
    assert {picture.shape for picture in pictures} == {SHAPE}
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])
    env.reset(seed=0)
    np.testing.assert_array_equal(env.render(), pictures[0])


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_a_vectorised_environment_has_a_picture_for_each_copy(mode: str) -> None:
    options = {"max_episode_steps": 4, "autoreset_mode": mode, "render_mode": "rgb_array"}
    env: Any = gym.make_vec("rlopt/LQR-v0", num_envs=2, vectorization_mode="vector_entry_point", **options)
    single: Any = gym.make_vec("rlopt/LQR-v0", num_envs=1, vectorization_mode="vector_entry_point", **options)
    env.reset(seed=0, options={"initial_state": [[1.0, 0.0], [0.0, 1.0]]})
    single.reset(seed=0, options={"initial_state": [1.0, 0.0]})
    first, second = env.render()
    np.testing.assert_array_equal(first, single.render()[0])
    assert not np.array_equal(first, second)
    states = []
    for _ in range(6):  # passes the end of an episode
        env.step(np.zeros((2, 1)))
        states.append(env.states[0])
    steps = 1 if mode == "NextStep" else 2
    picture = SystemPicture("LQR: double integrator", time_step=0.1)
    picture._names, picture._units, picture.field = env._picture._names, env._picture._units, env._picture.field
    np.testing.assert_array_equal(env.render()[0], picture.draw(np.array(states[-steps - 1 :]), steps))
    assert gym.make_vec("rlopt/LQR-v0", num_envs=2, vectorization_mode="vector_entry_point").render() is None


def test_a_reset_of_one_copy_leaves_the_pictures_of_others_alone() -> None:
    options = {"autoreset_mode": "Disabled", "render_mode": "rgb_array"}
    env: Any = gym.make_vec("rlopt/LQR-v0", num_envs=2, vectorization_mode="vector_entry_point", **options)
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros((2, 1)))
    before = env.render()
    env.reset(options={"reset_mask": np.array([True, False])})
    after = env.render()
    np.testing.assert_array_equal(after[1], before[1])
    assert not np.array_equal(after[0], before[0])


def test_curves_move_with_the_episode() -> None:
    picture = SystemPicture("test", ["height", "speed"], ["m", "m/s"], time_step=0.5)
    states = np.stack([np.arange(HISTORY_LENGTH), -np.arange(HISTORY_LENGTH)], axis=1).astype(float)
    picture.draw(states, step=1000)
    times, heights = picture._curves[0].get_data()
    assert (times[0], times[-1]) == (0.5 * (1000 - HISTORY_LENGTH + 1), 500.0)
    np.testing.assert_array_equal(heights, states[:, 0])
    assert picture._left.get_xlabel() == "time (s)"
    assert [text.get_text() for text in picture._left.get_legend().get_texts()] == ["height (m)", "speed (m/s)"]
    assert (picture._right.get_xlabel(), picture._right.get_ylabel()) == ("height (m)", "speed (m/s)")
    assert picture._point.get_data() == ([HISTORY_LENGTH - 1], [1 - HISTORY_LENGTH])


def test_a_state_that_is_not_finite_does_not_break_the_picture() -> None:
    assert SystemPicture("test").draw(np.array([[0.0, 1.0], [np.inf, np.nan]]), step=1).shape == SHAPE


def test_a_picture_takes_a_fraction_of_a_second() -> None:
    env = gym.make("rlopt/LQR-v0", render_mode="rgb_array")
    env.reset(seed=0)
    for _ in range(100):
        env.step(env.action_space.sample())
    env.render()  # imports and builds
    times = []
    for _ in range(5):
        start = time.process_time()
        env.render()
        times.append(time.process_time() - start)
    assert min(times) < 0.5


@pytest.mark.usefixtures("no_display")
def test_a_window_shows_each_step_and_can_be_closed_twice() -> None:
    env = gym.make("rlopt/LQR-v0", render_mode="human")
    env.reset(seed=0)
    env.step(np.zeros(1, np.float32))
    assert env.render() is None
    window: Any = env.unwrapped._window
    shown = window._pygame.surfarray.array3d(window._screen).swapaxes(0, 1)
    np.testing.assert_array_equal(shown, env.unwrapped._draw())
    env.close()
    env.close()


@pytest.mark.usefixtures("no_display")
def test_a_window_takes_the_size_of_its_picture() -> None:
    window = HumanWindow()
    for height in (20, 30):
        window.show(np.zeros((height, 40, 3), np.uint8), fps=1000)
        assert window._screen.get_size() == (40, height)
    window.close()


def test_without_pygame_the_window_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(DependencyNotInstalled, match=r"pip install 'rlopt\[render\]'"):
        HumanWindow()
