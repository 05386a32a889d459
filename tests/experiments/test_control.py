"""The control experiment: its score against exact costs, its environment, its command line, and that agents learn."""

import json
from itertools import pairwise
from pathlib import Path

import control
import numpy as np
import pytest
import torch
from _control_training import gain_of, make_control_agent, make_env, make_vector_env, relative_excess_costs, train
from commands import MACHINES, refusal, run

from rlopt.replay import ReverseReplay
from rlopt.study.runs import read_evaluations
from rlopt_envs.riccati import discounted_cost, policy_value_matrix

OPTIONS = [*MACHINES, *(Path(__file__).parent / "control_options.txt").read_text(encoding="utf-8").split()]
TINY = [
    *("--total-timesteps", "120", "--num-evaluations", "2", "--eval-episodes", "4", "--buffer-size", "200"),
    *("--net-arch", "8", "--batch-size", "8", "--learning-starts", "50", "--train-freq", "20", "--gradient-steps", "2"),
]


def parse(*arguments):
    return control.parse_arguments(control.ControlStudy, arguments)


def config_of(*arguments, agent="sac"):
    """The config of a run on the first system."""
    study = parse(*arguments)
    return {**control.make_task(study, study.system[0]).config, **control.variant(study, agent)}


class Linear:
    """The policy u = -K x; it sees scaled states."""

    def __init__(self, gain, scale):
        self.gain, self.scale = gain, scale

    def predict(self, observation, *, deterministic):
        assert deterministic
        assert observation.dtype == np.float32
        return -(observation * self.scale) @ self.gain.T, None


def linear(env, factor, shift=0.0):
    task = env.unwrapped
    return Linear(factor * task.optimal_gain + shift, np.sqrt(np.diag(task.initial_covariance)))


# The score


@pytest.mark.parametrize("system", ["double_integrator", "aircraft_longitudinal"])
def test_optimal_policy_has_no_excess_cost(system):
    env = make_vector_env({"env_id": "rlopt/LQR-v0", "env_options": {"system": system}}, 20)
    assert np.abs(relative_excess_costs(linear(env, 1.0), env, 1, 0)).max() < 1e-9


def test_excess_of_a_linear_policy_is_the_exact_one():
    env = make_vector_env({"env_id": "rlopt/LQR-v0", "env_options": {"system": "double_integrator", "action_limit": 100.0}}, 1000)
    task, policy = env.unwrapped, linear(env, 0.7, 0.3)
    value_matrix = policy_value_matrix(task.system.A, task.system.B, task.Q, task.R, policy.gain, task.discount)
    cost = discounted_cost(value_matrix, task.system.noise_cov, task.discount, task.initial_covariance)
    excess = relative_excess_costs(policy, env, 1, 0)
    error = excess.std(ddof=1) / np.sqrt(len(excess))
    assert abs(excess.mean() - (cost / task.optimal_cost - 1)) < 4 * error + 1e-3 * excess.mean()  # a tail of weight 0.001 is cut
    assert error < 0.03 * excess.mean()


@pytest.mark.parametrize("env_id", ["rlopt/LQR-v0", "rlopt/LQG-v0"])
def test_excess_of_doing_nothing_is_the_exact_one(env_id):
    env = make_vector_env({"env_id": env_id, "env_options": {"system": "mass_spring_damper_chain"}}, 500)

    class Idle:
        def predict(self, observation, *, deterministic):
            return np.zeros((len(observation), 1)), None

    excess = relative_excess_costs(Idle(), env, 1, 0)
    error = excess.std(ddof=1) / np.sqrt(len(excess))
    assert abs(excess.mean() - control.excess_of_doing_nothing(env.unwrapped)) < 4 * error + 5e-3 * excess.mean()
    assert error < 0.05 * excess.mean()


def test_doing_nothing_costs_infinitely_much_where_things_fall_over():
    assert control.excess_of_doing_nothing(make_vector_env(config_of("--system", "inverted_pendulum"), 1).unwrapped) is None


def test_diverging_episodes_count_as_10000():
    env = make_vector_env(config_of("--system", "inverted_pendulum"), 3)
    optimal = linear(env, 1.0)

    class Sometimes:
        def predict(self, observation, *, deterministic):
            return optimal.predict(observation, deterministic=True)[0] * [[1.0], [0.0], [0.0]], None

    with np.errstate(over="raise"):  # 1.22^688 is not a number of a float32
        excess = relative_excess_costs(Sometimes(), env, 1, 0)
    assert excess.tolist() == [pytest.approx(0.0, abs=1e-9), 1e4, 1e4]


def test_evaluations_with_one_seed_meet_the_same_episodes():
    env = make_vector_env({"env_id": "rlopt/LQR-v0", "env_options": {"system": "double_integrator"}}, 4)
    first, again, other = (relative_excess_costs(linear(env, 0.8), env, 1, seed) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("system", ["double_integrator", "aircraft_longitudinal"])
def test_gain_of_a_linear_policy_is_its_gain(system):
    env = make_vector_env({"env_id": "rlopt/LQR-v0", "env_options": {"system": system}}, 2)
    policy = linear(env, 0.5, 0.1)
    np.testing.assert_allclose(gain_of(policy, env), policy.gain, rtol=1e-5)


# What the agent sees


def test_training_observations_and_rewards_have_scale_one():
    env = make_env(config_of())
    plain = make_env(config_of()).unwrapped
    deviations = np.sqrt(np.diag(plain.initial_covariance))
    seen, _ = env.reset(seed=3)
    state, _ = plain.reset(seed=3)
    np.testing.assert_allclose(seen, state / deviations, rtol=1e-6)
    action = env.action_space.high / 2
    (seen, reward, *_), (state, plain_reward, *_) = env.step(action), plain.step(action)
    np.testing.assert_allclose(seen, state / deviations, rtol=1e-6)
    assert reward == pytest.approx(plain_reward * 10 / plain.optimal_cost)


def test_training_episodes_are_cut_and_not_ended():
    env = make_env(config_of("--episode-steps", "3"))
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample() * 0)[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_history_is_stacked_alike_in_training_and_evaluation():
    config = config_of("--problem", "lqg", "--system", "aircraft_longitudinal", "--history", "3")
    env = make_env(config)
    assert env.observation_space.shape == (6,)
    trained = [env.reset(seed=0)[0], *(env.step(np.zeros(2, np.float32))[0] for _ in range(4))]

    class Recorder:
        def __init__(self):
            self.seen = []

        def predict(self, observation, *, deterministic):
            self.seen.append(observation.copy())
            return np.zeros((len(observation), 2)), None

    recorder = Recorder()
    relative_excess_costs(recorder, make_vector_env(config, 2), 3, 0)
    for seen in (trained, [batch[0] for batch in recorder.seen], [batch[1] for batch in recorder.seen]):
        assert np.array_equal(seen[0], np.tile(seen[0][:2], 3))  # the first observation stands for those before it
        for before, after in pairwise(seen):
            assert np.array_equal(after[:4], before[2:])  # the oldest leaves in front, the newest comes last
            assert not np.array_equal(after[4:], before[4:])


def test_observations_of_lqg_have_scale_one():
    env = make_env(config_of("--problem", "lqg", "--system", "inverted_pendulum"))
    first = np.array([env.reset(seed=seed)[0] for seed in range(400)])
    np.testing.assert_allclose(first.std(axis=0), 1, atol=0.15)


# Options


def test_learning_rate_falls_to_zero_unless_told_otherwise():
    falling = make_control_agent(config_of("--learning-rate", "0.002"), 0).lr_schedule
    assert (falling(1.0), falling(0.5), falling(0.0)) == (0.002, 0.001, 0.0)
    constant = make_control_agent(config_of("--no-learning-rate-decay"), 0).lr_schedule
    assert constant(1.0) == constant(0.0) == 1e-3


def test_options_reach_the_agent():
    arguments = ["--replay", "reverse", "--discount", "0.9", "--action-limit", "2", "--policy-delay", "3", "--activation", "tanh"]
    config = config_of(*arguments, agent="td3")
    agent = make_control_agent(config, 0)
    assert {type(layer).__name__ for layer in agent.critic.qf0} == {"Linear", "Tanh"}
    assert isinstance(agent.replay_buffer, ReverseReplay)
    assert (agent.gamma, agent.policy_delay) == (0.9, 3)
    assert agent.action_space.high.tolist() == [2.0]
    assert make_env(config).unwrapped.discount == 0.9
    assert "policy_delay" not in config_of("--policy-delay", "3")["options"]  # sac has none


def test_default_action_limit_is_2_and_a_half_deviations():
    problem = make_env(config_of()).unwrapped
    gain = problem.optimal_gain
    deviation = np.sqrt((gain @ problem.initial_covariance @ gain.T)[0, 0])
    assert problem.action_space.high[0] == pytest.approx(2.5 * deviation, rel=1e-6)


def test_task_is_a_cost_with_reference_lines():
    task = control.make_task(parse(), "double_integrator")
    assert (task.goal, task.log_scale, task.score_name) == ("minimize", True, "relative excess cost")
    assert list(task.references) == ["5 % above the optimum", "no control"]
    assert task.references["5 % above the optimum"] == ((600, 0.05), (12_000, 0.05))
    assert list(control.make_task(parse(), "inverted_pendulum").references) == ["5 % above the optimum"]


def test_default_names_tell_studies_apart():
    assert control.default_name(parse()) == "lqr_double_integrator"
    assert control.default_name(parse("--agents", "td3", "sac", "--seeds", "2")) == "lqr_double_integrator"
    name = control.default_name(parse("--problem", "lqg", "--history", "4", "--net-arch", "8", "8"))
    assert name == "lqg_double_integrator_history=4_net_arch=8x8"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--agents", "sacc"], "error: agents must be among sac, td3, ddpg, got sacc; did you mean sac"),
        (["--agents", "sac", "sac"], "error: agents must be different names, got sac twice"),
        (["--system", "double_integrater"], "got double_integrater; did you mean double_integrator?"),
        (["--replay", "hindsight"], "error: replay must be among uniform, "),
        (["--discount", "1"], "error: discount must be in (0, 1), got 1.0"),
        (["--eval-episodes", "1"], "error: eval_episodes must be > 1, got 1"),
        (["--history", "0"], "error: history must be > 0, got 0"),
        (["--action-limit", "-1"], "error: action_limit must be > 0, got -1.0"),
        (["--name", "a/b"], "error: name must be one folder without '/'"),
        (["--policy-delay", "3"], "error: policy_delay has no effect: it belongs to td3, the agents here are sac; drop the option"),
        (["--double-q", "True"], "error: double_q has no effect: it belongs to dqn, the agents here are sac; drop the option"),
        (["--device", "abacus"], "error: device must be one that this machine has, got abacus"),
    ],
)
def test_wrong_input_gives_one_line(tmp_path, capsys, arguments, message):
    error = refusal(control.main, [*arguments, "--output", str(tmp_path)], capsys)
    assert message.removeprefix("error: ") in error
    assert not list(tmp_path.iterdir())


def test_option_list():
    words = run("control.py", "--help")[1].replace("│", " ").replace(",", " ").split()
    found = {word for word in words if word.startswith("--") and word.strip("-")}
    assert sorted(found) == sorted(OPTIONS)


# Runs


def test_run_reports_its_scores(tmp_path):
    config = config_of(*TINY, "--learning-starts", "200")
    train(config, 0, tmp_path)
    rows = read_evaluations(tmp_path)
    assert [row.step for row in rows] == [60, 120]
    assert all(row.score > 0 for row in rows)
    header, last = [(tmp_path / "progress.csv").read_text().splitlines()[i].split(",") for i in (0, -1)]
    progress = dict(zip(header, map(float, last), strict=True))
    assert progress["eval/relative_excess_cost"] == rows[-1].score
    assert progress["eval/cost"] == pytest.approx((1 + rows[-1].score) * progress["eval/optimal_cost"])
    assert {"eval/standard_error", "eval/relative_gain_error"} <= set(header)
    assert list(tmp_path.glob("events.out.tfevents.*"))


@pytest.mark.slow
def test_study_end_to_end(tmp_path):
    arguments = [*TINY, "--agents", "td3", "sac", "--seeds", "1", "--output", tmp_path, "--name", "s"]
    code, output = run("control.py", *arguments)
    assert code == 0, output
    assert "td3" in (tmp_path / "s" / "report.md").read_text()
    config = json.loads(next((tmp_path / "s").rglob("td3/seed_0/config.json")).read_text())
    assert (config["agent"], config["env_options"]["system"]) == ("td3", "double_integrator")
    code, output = run("control.py", *arguments)
    assert code == 0
    assert "2 of 2 runs are finished already." in output


@pytest.fixture
def one_thread():
    """Small networks are slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_agent_comes_near_the_optimum_in_a_few_thousand_steps(tmp_path, one_thread):
    config = config_of("--total-timesteps", "2500", "--num-evaluations", "1", "--batch-size", "64")
    untrained = relative_excess_costs(make_control_agent(config, 0), make_vector_env(config, 256), 1, 0).mean()
    train(config, 0, tmp_path)
    (evaluation,) = read_evaluations(tmp_path)
    assert untrained > 100.0  # measured 3700
    assert evaluation.score < 1.0  # measured 0.34
