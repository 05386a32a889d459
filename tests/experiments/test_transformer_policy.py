"""The command line of the comparison of policies with memory, its reference scores, and what a run computes."""

import csv
import json

import _transformer_policy_training as training
import numpy as np
import pytest
import torch
import transformer_policy as experiment
from commands import MACHINES, refusal, run

# Changing this list changes the interface that users type: do it deliberately, and tell it in the changelog.
OPTIONS = [
    *MACHINES,
    *("--agents", "--corridor-length", "--device", "--eval-episodes", "--extractors", "--help", "--history", "--jobs", "--name"),
    *("--num-evaluations", "--output", "--preset", "--seeds", "--tasks", "--total-timesteps"),
]


@pytest.fixture(autouse=True)
def _few_reference_episodes(monkeypatch):
    monkeypatch.setattr(training, "_REFERENCE_EPISODES", 2)


def config(task="tmaze", agent="ppo", extractor="transformer", **changes):
    study = experiment.MemoryStudy(tasks=(task,), agents=(agent,), extractors=(extractor,))
    found = experiment.make_task(study, task, agent).config
    return {**found, "extractor": extractor, **changes}


def test_option_list(capsys):
    with pytest.raises(SystemExit):
        experiment.main(["--help"])
    words = capsys.readouterr().out.replace("│", " ").replace(",", " ").split()
    assert sorted({word for word in words if word.startswith("--") and word.strip("-")}) == sorted(OPTIONS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "seeds must be > 0, got 0"),
        (["--corridor-length", "-1"], "corridor_length must be >= 0, got -1"),
        (["--extractors", "transfomer"], "got transfomer; did you mean transformer"),
        (["--tasks", "lqg", "lqg"], "tasks must be different names, got lqg twice"),
        (["--tasks", "lqg", "--agents", "sac"], "agents must hold one for lqg (ppo), got sac"),
        (["--tasks", "lqg", "--agents", "ppo", "dqn"], "agents must be able to act in one of the tasks (lqg), got dqn"),
        (["--tasks", "lqg", "--agents", "ppo", "--corridor-length", "3"], "corridor_length has no effect without the task tmaze"),
        (["--agents", "dqn_sequences", "--tasks", "tmaze"], "extractors must not hold flat with dqn_sequences"),
        (
            ["--agents", "sac_sequences", "--tasks", "pendulum", "--extractors", "moe", "--history", "3"],
            "history must be at least 4 with sac_sequences in pendulum, got 3",
        ),
        (["--name", "a/b"], "name must be one folder without '/'"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_values_out_of_range_are_refused(capsys, arguments, message):
    assert message in refusal(experiment.main, arguments, capsys)


def test_tasks_are_those_that_agents_can_act_in_with_history_as_long_as_needed():
    prepared = experiment.prepare(["--corridor-length", "30", "--extractors", "flat", "moe"])
    assert [task.name for task in prepared["tasks"]] == ["ppo_tmaze", "dqn_tmaze", "ppo_lqg"]
    assert prepared["tasks"][0].config["history"] == 32
    assert prepared["tasks"][0].config["env_options"] == {"corridor_length": 30}
    assert prepared["baseline"] == "flat"
    assert "corridor_length=30" in prepared["folder"].name


def test_reference_scores_of_the_maze_are_known():
    assert training.reference_scores("tmaze", {"corridor_length": 4}) == (0.0, 1.0)
    assert training.reference_scores("cartpole", {}) == (None, None)


def test_reference_scores_of_lqg_are_near_their_expectations(monkeypatch):
    # Discounted costs of 200 steps leave out the rest, a share of 0.99^200 = 0.13 where the cost is about constant.
    monkeypatch.setattr(training, "_REFERENCE_EPISODES", 100)
    low, high = training.reference_scores("lqg", {})
    assert -13.0 < high < -8.0  # -10.67 without end
    assert low < 5 * high


@pytest.mark.parametrize("extractor", training.EXTRACTORS)
def test_every_extractor_acts_on_histories(extractor):
    agent = training.make_agent(config(extractor=extractor), seed=0)
    obs = agent.get_env().reset()
    assert obs["observations"].shape[:2] == (16, 12)
    first = agent.predict(obs, deterministic=True)[0]
    assert first.shape == (16,)
    # Only the memoryless policy does not see the past.
    tensors = {name: torch.as_tensor(part) for name, part in obs.items()}
    changed = {**tensors, "observations": tensors["observations"].clone(), "valid": torch.ones_like(tensors["valid"])}
    features = agent.policy.extract_features(changed, agent.policy.features_extractor)
    changed["observations"][:, :-1] += 1.0
    others = agent.policy.extract_features(changed, agent.policy.features_extractor)
    assert torch.allclose(features, others) == (extractor == "memoryless")


def test_rewards_to_learn_from_are_scaled_and_scores_are_not():
    agent = training.make_agent(config("lqg", "ppo"), seed=0)
    env = agent.get_env()
    env.reset()
    for _ in range(3):
        rewards = env.step(np.ones((16, 1), np.float32))[1]
    raw = env.get_original_reward()
    np.testing.assert_allclose(rewards, raw / np.sqrt(env.ret_rms.var + 1e-8))


def test_small_rewards_are_bounded_for_the_agent_and_not_in_scores():
    rewards = {}
    for bound in (-np.inf, -2.0):
        env = training.make_env(config("lqg", "ppo"), bound)
        env.reset(seed=0)
        rewards[bound] = [env.step(np.full(1, 3.0, np.float32))[1] for _ in range(20)]
    assert min(rewards[-np.inf]) < -2.0 < max(rewards[-np.inf])
    np.testing.assert_array_equal(rewards[-2.0], np.maximum(rewards[-np.inf], -2.0))
    agent = training.make_agent(config("lqg", "ppo"), seed=0)
    agent.get_env().reset()
    for _ in range(20):
        agent.get_env().step(np.full((16, 1), 3.0, np.float32))
    assert agent.get_env().get_original_reward().min() == -2.0


@pytest.mark.parametrize(
    ("task", "agent", "length"),
    [("tmaze", "dqn_sequences", 12), ("pendulum", "sac_sequences", 5), ("pendulum", "td3_sequences", 5)],
)
@pytest.mark.parametrize("extractor", ["memoryless", "gtrxl"])
def test_sequences_are_as_long_as_the_history_allows(task, agent, length, extractor):
    made = training.make_agent(config(task, agent, extractor), seed=0)
    made.learning_starts = 40
    made.learn(44)
    assert made.sequences.length == length
    assert made.replay_buffer.observation_space.spaces.keys() >= {"observations"}


def test_hyper_parameters_reach_the_agent():
    agent = training.make_agent(config("lqg", "ppo"), seed=0)
    assert agent.policy.log_std.item() == pytest.approx(-0.7)
    assert [agent.lr_schedule(left) for left in (1.0, 0.5, 0.0)] == pytest.approx([1e-3, 5e-4, 0.0])


def test_run_writes_scores(tmp_path):
    options = {"n_envs": 2, "n_steps": 16, "batch_size": 16, "n_epochs": 1}
    training.train(config(total_timesteps=64, num_evaluations=2, eval_episodes=3, options=options), 0, tmp_path)
    with (tmp_path / "evaluations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [32, 64]
    assert all(-1.0 <= float(row["score"]) <= 1.0 for row in rows)


@pytest.mark.slow
def test_transformer_solves_a_maze_that_a_policy_without_memory_cannot(tmp_path):
    arguments = ["--preset", "quick", "--seeds", "1", "--output", str(tmp_path), "--name", "maze", "--jobs", "2"]
    status, output = run("transformer_policy.py", *arguments)
    assert status == 0, output
    scores = {}
    for extractor in ("memoryless", "transformer"):
        folder = tmp_path / "maze" / "ppo_tmaze" / extractor / "seed_0"
        assert json.loads((folder / "config.json").read_text())
        with (folder / "evaluations.csv").open() as file:
            scores[extractor] = float(list(csv.DictReader(file))[-1]["score"])
    assert scores["transformer"] >= 0.9
    assert abs(scores["memoryless"]) <= 0.5
    assert (tmp_path / "maze" / "report.html").exists()
