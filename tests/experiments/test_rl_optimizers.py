"""The comparison of optimizers in agents: its command line, what a run computes and costs, and runs that diverge."""

import ast
import csv
import inspect
import json
import re
from itertools import pairwise

import _rl_optimizers_training as training
import _training
import gymnasium as gym
import numpy as np
import pytest
import rl_optimizers as experiment
import torch
from commands import MACHINES, refusal, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlopt.optim import SAM, LocoProp, build_optimizer
from rlopt.study.runs import read_evaluations

# Changing this list changes the interface that users type: do it deliberately, and tell it in the changelog.
OPTIONS = [
    *MACHINES,
    *("--action-noise", "--agents", "--apply-to", "--batch-size", "--buffer-size", "--device", "--double-q", "--env-id"),
    *("--eval-episodes", "--exploration-final-eps", "--exploration-fraction", "--gamma", "--gradient-steps", "--help", "--jobs"),
    *("--learning-rates", "--learning-starts", "--n-steps", "--name", "--net-arch", "--num-evaluations", "--optimizers"),
    *(
        "--output",
        "--policy-delay",
        "--preset",
        "--pruner",
        "--search",
        "--seeds",
        "--storage",
        "--target-update-interval",
        "--tau",
    ),
    "--total-timesteps",
    "--train-freq",
]
# 4 phases of 2 steps.
TINY = [
    *("--total-timesteps", "80", "--num-evaluations", "2", "--eval-episodes", "2", "--buffer-size", "100", "--net-arch", "8", "4"),
    *("--batch-size", "8", "--learning-starts", "10", "--train-freq", "16", "--gradient-steps", "2"),
]
PACKAGED = ("adamp", "lars", "sgdp", "soap", "shampoo")
ENVS = {"dqn": "CartPole-v1", "td3": "Pendulum-v1", "sac": "Pendulum-v1", "ddpg": "Pendulum-v1"}


def parse(*arguments):
    return experiment.parse(arguments)


def config(agent, optimizer, *arguments):
    study = parse(*TINY, "--agents", agent, "--env-id", ENVS[agent], "--optimizers", optimizer, *arguments)
    (task,) = experiment.make_tasks(study)
    return {**task.config, **experiment.variant(study, optimizer)}


def trained(folder, monkeypatch, options, seed=3):
    """Train and return the agent."""
    made = []
    monkeypatch.setattr(training, "make_agent", lambda *args: made.append(_training.make_agent(*args)) or made[-1])
    training.train(options, seed, folder)
    return made[0]


def weights(agent):
    return torch.cat([parameter.detach().flatten() for parameter in agent.policy.parameters()]).numpy()


def evaluated_rows(folder):
    with (folder / "progress.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["eval/mean_reward"]]


def returns_of_random_actions(env_id, episodes, run_seed, step):
    """A plain twin: all episodes side by side, actions from one generator in the order of the episodes."""
    *seeds, action_seed = np.random.SeedSequence(run_seed, spawn_key=(1, step)).generate_state(episodes + 1).tolist()
    envs = [gym.make(env_id) for _ in range(episodes)]
    space = envs[0].action_space
    space.seed(action_seed)
    for env, seed in zip(envs, seeds, strict=True):
        env.reset(seed=seed)
    returns, running = [0.0] * episodes, list(range(episodes))
    while running:
        actions = {index: space.sample() for index in running}
        for index, action in actions.items():
            _, reward, terminated, truncated, _ = envs[index].step(action)
            returns[index] += float(reward)
            if terminated or truncated:
                running.remove(index)
    return float(np.mean(returns))


# The command line


def test_option_list(capsys):
    with pytest.raises(SystemExit) as exit_:
        experiment.main(["--help"])
    assert exit_.value.code == 0
    words = capsys.readouterr().out.replace("│", " ").replace(",", " ").split()
    found = {word for word in words if word.startswith("--") and word.strip("-")}
    assert sorted(found) == sorted(OPTIONS)


def test_every_option_has_a_help_text():
    body = ast.parse(inspect.getsource(experiment.RlOptimizersStudy)).body[0].body
    for field, after in pairwise(body):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(after, ast.Expr), field.target.id
            assert isinstance(after.value.value, str), field.target.id


def test_help_names_every_optimizer_and_agent():
    words = set(re.findall(r"\w+", inspect.getsource(experiment.RlOptimizersStudy)))
    assert {*training.OPTIMIZERS, *experiment.AGENTS} <= words


@pytest.mark.parametrize("name", experiment.PRESETS)
def test_presets_parse_and_have_no_option_without_effect(name):
    study = parse("--preset", name)
    assert study == experiment.PRESETS[name][1]
    assert study.preset == name
    experiment.refuse_options_without_effect(study)
    (task,) = experiment.make_tasks(study)
    assert task.low < task.high


def test_tasks_are_the_agents_in_the_environments_that_they_can_act_in():
    study = parse("--agents", "dqn", "td3", "sac", "--env-id", "Pendulum-v1", "CartPole-v1", "Acrobot-v1")
    tasks = experiment.make_tasks(study)
    assert [task.name for task in tasks] == ["dqn_CartPole-v1", "dqn_Acrobot-v1", "td3_Pendulum-v1", "sac_Pendulum-v1"]
    assert [task.total_steps for task in tasks] == [50_000, 30_000, 10_000, 10_000]
    assert [(task.low, task.high) for task in tasks[:3]] == [(22.7, 475.0), (-497.4, -100.0), (-1255.5, -200.0)]
    assert tasks[0].config["options"]["target_update_interval"] == 10
    assert "action_noise" not in tasks[0].config["options"]
    assert not any("learning_rate" in task.config["options"] for task in tasks)


def test_given_options_win_over_the_preset():
    study = parse("--preset", "quick", "--total-timesteps", "900", "--gamma", "0.9", "--seeds", "7")
    (task,) = experiment.make_tasks(study)
    assert (task.total_steps, task.config["options"]["gamma"], task.config["options"]["train_freq"]) == (900, 0.9, 128)
    assert (study.seeds, study.num_evaluations) == (7, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--policy-delay", "3"],
            "policy_delay has no effect: it belongs to td3, the agents here are dqn; drop the option",
        ),
        (
            ["--preset", "pendulum", "--double-q", "True"],
            "double_q has no effect: it belongs to dqn, the agents here are td3; drop the option",
        ),
        (["--apply-to", "critic"], "apply_to has no effect: dqn has a single network; drop the option"),
        (
            ["--agents", "dqn", "td3", "--env-id", "CartPole-v1", "Pendulum-v1", "--apply-to", "actor"],
            "apply_to must be both or critic with dqn, which has no actor, got actor",
        ),
        (
            ["--agents", "td3"],
            "env_id must fit one of the agents (td3), got CartPole-v1",
        ),
        (
            ["--agents", "dqn", "sac"],
            "agents must be able to act in one of the environments (CartPole-v1), got sac; give --env-id",
        ),
        (["--env-id", "CartPole-v7"], "env_id must be an environment that is installed, got CartPole-v7"),
        (
            ["--optimizers", "sgd", "adam", "--learning-rates", "adan=0.1"],
            "learning_rates has no effect for adan: the optimizers are sgd, adam; did you mean adam?; drop it",
        ),
        (
            ["--optimizers", "sgd", "--learning-rates", "sgd.actor=0.1"],
            "learning_rates has no effect for sgd.actor: the networks with sgd are q; drop it",
        ),
        (
            ["--preset", "pendulum", "--optimizers", "sgd", "--apply-to", "critic", "--learning-rates", "sgd.actor=0.1"],
            "learning_rates has no effect for sgd.actor: the networks with sgd are critic; drop it",
        ),
        (
            ["--preset", "pendulum", "--optimizers", "sgd", "--apply-to", "critic", "--learning-rates", "adam.critic=0.1"],
            "learning_rates has no effect for adam.critic: the networks with adam are actor; drop it",
        ),
        (
            ["--learning-rates", "adam=0.1", "adam.q=0.2"],
            "learning_rates has no effect for adam: each of its networks has a rate of its own; drop it",
        ),
        (["--device", "abacus"], "device must be one that this machine has, got abacus"),
    ],
)
def test_wrong_input_gives_one_line(tmp_path, capsys, arguments, message):
    assert experiment.main([*arguments, "--output", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "seeds must be > 0, got 0"),
        (["--num-evaluations", "0"], "num_evaluations must be > 0, got 0"),
        (["--batch-size", "0"], "batch_size must be > 0, got 0"),
        (["--agents", "dqm"], "agents must be among dqn, td3, sac, ddpg, got dqm; did you mean dqn?"),
        (["--agents", "dqn", "dqn"], "agents must be different names, got dqn twice"),
        (["--optimizers", "adm"], "got adm; did you mean adam"),
        (["--optimizers", "sgd", "sgd"], "optimizers must be different names, got sgd twice"),
        (["--optimizers", "scale_invariant_sgd"], "must not hold scale_invariant_sgd: the networks of the agents are not"),
        (["--learning-rates", "adam"], "learning_rates must have the form NAME=NUMBER with a number > 0, got adam"),
        (["--learning-rates", "adam.q=0"], "learning_rates must have the form NAME=NUMBER with a number > 0, got adam.q=0"),
        (["--learning-rates", "adam.v=1"], "must name a network among q, critic, actor after the dot, got adam.v"),
        (["--learning-rates", "sgd=1", "sgd=2"], "learning_rates must give sgd once, got it twice"),
        (["--learning-rate", "1"], "Unrecognized options: --learning-rate"),
        (["--name", "a/b"], "name must be one folder without '/'"),
        (["--preset", "best"], "cartpole, acrobot, pendulum, quick"),
        (["--apply-to", "all"], "both, critic, actor"),
    ],
)
def test_values_out_of_range_are_refused(capsys, arguments, message):
    assert message in refusal(experiment.main, arguments, capsys)


def test_a_missing_package_is_told_before_anything_is_started(tmp_path, capsys, monkeypatch):
    def missing(spec, module):
        raise ImportError("pytorch_optimizer must be installed for this optimizer, but is not.")

    monkeypatch.setattr(experiment, "build_optimizer", missing)
    assert experiment.main(["--optimizers", "soap", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: optimizers must not hold soap here: pytorch_optimizer must be installed")
    assert not list(tmp_path.iterdir())


def test_default_names_tell_studies_apart():
    def name(*arguments):
        return experiment.default_name(parse(*arguments))

    assert name("--preset", "quick") == "rl_optimizers_quick"
    assert name("--learning-rates", "adam=0.1", "--net-arch", "8", "2") == (
        "rl_optimizers_cartpole_learning_rates=adam=0.1_net_arch=8,2"
    )
    # More seeds or optimizers belong to the same study.
    assert name("--seeds", "9", "--optimizers", "sgd") == "rl_optimizers_cartpole"


def test_baseline_is_adam_or_the_first():
    assert experiment.prepare(["--optimizers", "sgd", "adam"])["baseline"] == "adam"
    assert experiment.prepare(["--optimizers", "sgd", "rmsprop"])["baseline"] == "sgd"


# Optimizers and rates of the networks


def test_rates_of_networks_are_the_given_ones_or_defaults():
    study = parse("--optimizers", "sgd", "--learning-rates", "sgd=0.5", "sgd.critic=0.2")
    networks = experiment.variant(study, "sgd")["networks"]
    assert networks == {
        "q": {"optimizer": "sgd", "lr": 0.5},
        "critic": {"optimizer": "sgd", "lr": 0.2},
        "actor": {"optimizer": "sgd", "lr": 0.5},
    }
    default = experiment.variant(parse(), "rmsprop")["networks"]
    chosen = training.OPTIMIZERS["rmsprop"]
    assert [default[network]["lr"] for network in ("q", "critic", "actor")] == [chosen.q, chosen.critic, chosen.actor]


@pytest.mark.parametrize(("part", "expected"), [("both", ["sgd", "sgd"]), ("critic", ["sgd", "adam"]), ("actor", ["adam", "sgd"])])
def test_the_network_that_is_left_out_keeps_adam(part, expected):
    study = parse("--preset", "pendulum", "--optimizers", "sgd", "--apply-to", part)
    networks = experiment.variant(study, "sgd")["networks"]
    assert [networks[name]["optimizer"] for name in ("critic", "actor")] == expected
    assert networks["q"]["optimizer"] == "sgd"  # of dqn, which counts as a critic


def test_rates_of_adam_reach_the_network_that_keeps_it():
    arguments = ["--preset", "pendulum", "--optimizers", "sgd", "--apply-to", "critic", "--learning-rates", "adam.actor=0.125"]
    study = parse(*arguments)
    experiment.refuse_options_without_effect(study)
    assert experiment.variant(study, "sgd")["networks"]["actor"] == {"optimizer": "adam", "lr": 0.125}


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_learning_rate_reaches_the_optimizer(optimizer):
    if optimizer in PACKAGED:
        pytest.importorskip("pytorch_optimizer")
    built = build_optimizer(training.make_spec(optimizer, 0.0625), torch.nn.Linear(3, 2))
    assert built.param_groups[0]["lr"] == 0.0625


def test_networks_of_an_agent_get_their_optimizers():
    agent = training.make_learner(config("sac", "sam", "--apply-to", "critic"), 0)
    assert isinstance(agent.critic.optimizer, SAM)
    assert type(agent.actor.optimizer) is torch.optim.Adam
    agent = training.make_learner(config("dqn", "locoprop_closed", "--learning-rates", "locoprop_closed=0.25"), 0)
    assert isinstance(agent.policy.optimizer, LocoProp)
    assert agent.policy.optimizer.param_groups[0]["lr"] == 0.25


def test_gamma_of_locoprop_is_per_row():
    specs = [choice.spec for name, choice in training.OPTIMIZERS.items() if name.startswith("locoprop")]
    assert [spec.gamma_mode for spec in specs] == ["per_row"] * 3


# Runs


@pytest.mark.parametrize("agent", ["dqn", "td3", "sac"])
def test_adam_is_the_run_without_an_optimizer(agent, tmp_path, monkeypatch):
    """The same run through the module of the comparison of replays, where Stable-Baselines3 makes the optimizers."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    options = config(agent, "adam", "--learning-rates", "adam=0.0003")
    ours = trained(tmp_path / "a", monkeypatch, options)
    made = []
    monkeypatch.setattr(_training, "make_agent", lambda *args, make=_training.make_agent: made.append(make(*args)) or made[-1])
    plain = {**options, "replay": "uniform", "replay_options": {}, "learning_rate_factor": 1.0}
    _training.train({**plain, "options": {**options["options"], "learning_rate": 3e-4}}, 3, tmp_path / "b")
    assert np.array_equal(weights(ours), weights(made[0]))
    scores = [[(row.step, row.score) for row in read_evaluations(tmp_path / name)] for name in "ab"]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("agent", ["dqn", "td3"])
@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_every_optimizer_trains_every_network(agent, optimizer, tmp_path, monkeypatch):
    if optimizer in PACKAGED:
        pytest.importorskip("pytorch_optimizer")
    options = config(agent, optimizer, "--net-arch", "16", "16")  # in narrower ones all units may die
    before = dict(training.make_learner(options, 3).policy.named_parameters())
    after = dict(trained(tmp_path, monkeypatch, options).policy.named_parameters())
    assert all(torch.isfinite(value).all() for value in after.values())
    trained_names = [name for name in after if "target" not in name]
    assert [name for name in trained_names if torch.equal(after[name], before[name])] == []
    rows = evaluated_rows(tmp_path)
    assert [int(row["time/total_timesteps"]) for row in rows] == [40, 80]
    assert [float(row["train/diverged"]) for row in rows] == [0, 0]


def test_state_bytes_of_both_networks(tmp_path):
    training.train(config("td3", "adam"), 0, tmp_path)
    actor = 3 * 8 + 8 + 8 * 4 + 4 + 4 * 1 + 1
    critic = 4 * 8 + 8 + 8 * 4 + 4 + 4 * 1 + 1
    numbers, tensors = actor + 2 * critic, 3 * 6
    row = evaluated_rows(tmp_path)[-1]
    assert int(float(row["memory/optimizer_state_bytes"])) == 2 * 4 * numbers + 4 * tensors  # a step count for each tensor


def test_cpu_seconds_are_those_of_the_learning_phases(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(training.time, "process_time", lambda: clock[0])

    def timed(function, seconds):
        def call(*args, **kwargs):
            clock[0] += seconds
            return function(*args, **kwargs)

        return call

    agent_class = _training.AGENTS["dqn"]
    monkeypatch.setattr(agent_class, "train", timed(agent_class.train, 1.0))
    monkeypatch.setattr(_training, "play", timed(_training.play, 100.0))
    training.train(config("dqn", "adam"), 0, tmp_path)
    # Phases after steps 16, 32, 48, 64; the one after step 80 does not come any more.
    assert [float(row["time/learning_cpu_seconds"]) for row in evaluated_rows(tmp_path)] == [2.0, 4.0]

    def fail(self, closure=None):
        clock[0] += 0.5
        raise FloatingPointError("in the first phase, after 1.5 s of it")

    monkeypatch.setattr(torch.optim.SGD, "step", fail)
    (tmp_path / "diverges").mkdir()
    training.train(config("dqn", "sgd"), 0, tmp_path / "diverges")
    assert [float(row["time/learning_cpu_seconds"]) for row in evaluated_rows(tmp_path / "diverges")] == [1.5, 1.5]


def test_a_run_writes_tensorboard_scalars(tmp_path):
    training.train(config("dqn", "sgd"), 0, tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    wanted = {"eval/mean_reward", "time/learning_cpu_seconds", "memory/optimizer_state_bytes", "train/diverged", "train/loss"}
    assert wanted <= set(events.Tags()["scalars"])
    assert [scalar.step for scalar in events.Scalars("eval/mean_reward")] == [40, 80]


# Divergence


@pytest.mark.parametrize("agent", ["dqn", "td3", "sac"])
def test_a_run_that_diverges_ends_with_the_scores_of_random_actions(agent, tmp_path, monkeypatch, capsys):
    learner = trained(tmp_path, monkeypatch, config(agent, "sgd", "--learning-rates", "sgd=1e30"))
    assert training.has_diverged(learner)
    assert learner.num_timesteps == 16
    assert "The training diverged in step 16: " in capsys.readouterr().out
    rows = read_evaluations(tmp_path)
    assert [row.step for row in rows] == [40, 80]
    assert [row.score for row in rows] == [returns_of_random_actions(ENVS[agent], 2, 3, step) for step in (40, 80)]
    assert [float(row["train/diverged"]) for row in evaluated_rows(tmp_path)] == [1, 1]


@pytest.mark.parametrize(
    "error", [torch.linalg.LinAlgError("not positive-definite"), RuntimeError("inputs and gradients must be finite, got inf")]
)
def test_a_failed_factorisation_is_a_divergence(error, tmp_path, monkeypatch):
    def fail(self, closure=None):
        raise error

    monkeypatch.setattr(torch.optim.SGD, "step", fail)
    training.train(config("dqn", "sgd"), 0, tmp_path)
    assert [float(row["train/diverged"]) for row in evaluated_rows(tmp_path)] == [1, 1]


def test_evaluations_before_divergence_stay(tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    training.train(config("dqn", "sgd"), 0, tmp_path / "whole")
    agent_class = _training.AGENTS["dqn"]

    def train(self, gradient_steps, batch_size, real=agent_class.train):
        real(self, gradient_steps, batch_size)
        if self.num_timesteps > 40:
            self.q_net.q_net[0].weight.data[0, 0] = 2e8

    monkeypatch.setattr(agent_class, "train", train)
    training.train(config("dqn", "sgd"), 0, tmp_path / "broken")
    assert [float(row["train/diverged"]) for row in evaluated_rows(tmp_path / "broken")] == [0, 1]
    whole, broken = (read_evaluations(tmp_path / name) for name in ("whole", "broken"))
    assert broken[0].score == whole[0].score
    assert broken[1].score == returns_of_random_actions("CartPole-v1", 2, 0, 80)


@pytest.mark.parametrize("error", [ValueError("something else"), RuntimeError("out of memory")])
def test_other_errors_are_not_taken_for_divergence(error, tmp_path, monkeypatch):
    def fail(self, closure=None):
        raise error

    monkeypatch.setattr(torch.optim.SGD, "step", fail)
    with pytest.raises(type(error), match=str(error)):
        training.train(config("dqn", "sgd"), 0, tmp_path)


@pytest.mark.parametrize(("value", "diverged"), [(9e7, False), (-2e8, True), (float("nan"), True), (float("inf"), True)])
def test_divergence_is_a_weight_above_1e8_or_no_number(value, diverged):
    agent = training.make_learner(config("dqn", "sgd"), 0)
    assert not training.has_diverged(agent)
    with torch.no_grad():
        agent.q_net.q_net[2].bias[1] = value
    assert training.has_diverged(agent) == diverged


def test_random_actions_are_one_for_each_observation():
    space = gym.spaces.Discrete(5, seed=0)
    actions, _ = training.RandomActions(space).predict({"a": np.zeros((7, 2)), "b": np.zeros((7, 1))}, deterministic=True)
    twin = gym.spaces.Discrete(5, seed=0)
    assert actions.tolist() == [twin.sample() for _ in range(7)]


# Reports


def write_run(folder, optimizer, seed, marks, status="finished"):
    place = folder / "t" / optimizer / f"seed_{seed}"
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps({"task": "t", "variant": optimizer, "seed": seed}))
    (place / "manifest.json").write_text(json.dumps({"status": status}))
    (place / "evaluations.csv").write_text("step,score,seconds\n1,2.0,0.1\n")
    (place / "progress.csv").write_text("rollout/x,train/diverged\n" + "".join(f"1,{mark}\n" for mark in marks))


def test_finished_runs_that_diverged_are_counted(tmp_path):
    tasks = [{"name": "t", "total_steps": 1}, {"name": "untouched", "total_steps": 1}]
    record = {"tasks": tasks, "variants": ["adam", "sgd", "lbfgs"], "baseline": "adam", "commands": []}
    (tmp_path / "study.json").write_text(json.dumps(record))
    write_run(tmp_path, "adam", 0, ["0", "0", ""])  # the last row is of the log between evaluations
    write_run(tmp_path, "sgd", 0, ["0", "1", ""])
    write_run(tmp_path, "sgd", 1, ["0", "0"])
    write_run(tmp_path, "sgd", 2, ["1"], status="failed")
    assert experiment.diverged_runs(tmp_path) == ["Diverged: 1 of 2 runs of sgd on t"]


@pytest.mark.slow
def test_comparison_end_to_end(tmp_path, capsys):
    """Runs, one optimizer diverging, report with costs; a second start that repeats nothing; another configuration."""
    arguments = [*TINY, "--agents", "dqn", "td3", "--env-id", "CartPole-v1", "Pendulum-v1", "--optimizers", "adam", "sgd"]
    arguments += ["--learning-rates", "sgd.critic=1e30", "--seeds", "1", "--output", str(tmp_path), "--name", "s"]
    code, output = run("rl_optimizers.py", *arguments)
    assert code == 0, output
    assert f"Report: {tmp_path / 's' / 'report.html'}" in output
    assert "Diverged: 1 of 1 runs of sgd on td3_Pendulum-v1" in output
    assert "of sgd on dqn_CartPole-v1" not in output
    text = (tmp_path / "s" / "report.md").read_text(encoding="utf-8")
    assert text.count("| variant | evaluation score after 80 environment steps | CPU seconds for them |") == 2
    assert "optimizer state (MiB)" in text
    folder = tmp_path / "s" / "td3_Pendulum-v1" / "sgd" / "seed_0"
    assert "diverged in step" in (folder / "output.txt").read_text()
    assert json.loads((folder / "config.json").read_text())["networks"]["critic"] == {"optimizer": "sgd", "lr": 1e30}

    assert experiment.main(arguments) == 0
    assert "4 of 4 runs are finished already." in capsys.readouterr().out
    assert experiment.main([*arguments, "--gamma", "0.5"]) == 2
    assert "holds a run with options.gamma = " in capsys.readouterr().err
