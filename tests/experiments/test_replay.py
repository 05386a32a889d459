"""The command line of the replay comparison."""

import json
import signal
import time
from pathlib import Path

import pytest
import replay
from _hyperparameters import ACCEPTED, PAPER, QUICKSTART, TUNED, AgentOptions
from commands import MACHINES, refusal, start

from rlopt.replay import REPLAYS

TINY = [
    *("--total-timesteps", "300", "--num-evaluations", "3", "--eval-episodes", "1", "--buffer-size", "400"),
    *("--net-arch", "8", "--batch-size", "8", "--train-freq", "50", "--gradient-steps", "5", "--learning-starts", "50"),
]

# Changing this list changes the interface that users type: do it deliberately, and tell it in the changelog.
OPTIONS = [*MACHINES, *(Path(__file__).parent / "replay_options.txt").read_text(encoding="utf-8").split()]


STARTED = []


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind():
    yield
    for process in STARTED:
        process.kill()  # its workers notice and stop


def command(*arguments):
    process = start("replay.py", *arguments)
    STARTED.append(process)
    return process


@pytest.fixture(scope="module")
def help_text():
    process = command("--help")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return output


def test_option_list(help_text):
    words = help_text.replace("│", " ").replace(",", " ").split()
    found = {word for word in words if word.startswith("--") and word.strip("-")}
    examples = {"--introspective.mix", "--preset", "--env-id", "--replays", "--seeds", "--agent"}
    assert sorted(found | examples) == sorted(OPTIONS)


def test_every_option_has_a_help_text(help_text):
    lines = [line.strip("│╭╰─╮╯ ") for line in help_text.splitlines()]
    for index, line in enumerate(lines):
        if line.startswith("--"):
            assert lines[index + 1], line
            assert not lines[index + 1].startswith("--"), line


def main_error(capsys, *arguments):
    """Run in this process with wrong arguments and return what is said."""
    assert replay.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err + captured.out
    return captured.err.removesuffix("\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--env-id", "CartPol-v1"],
            "error: env_id must be an environment that is installed, got CartPol-v1; did you mean CartPole-v1",
        ),
        (
            ["--env-id", "LunarLander-v2"],
            "error: env_id must be an environment that is installed, got LunarLander-v2; did you mean LunarLander-v3",
        ),
        (
            ["--env-id", "Pendulum-v1", "--agent", "dqn"],
            "error: agent must be td3 or ddpg or sac for the continuous actions of Pendulum-v1, got dqn",
        ),
        (["--agent", "sac"], "error: agent must be dqn for the discrete actions of CartPole-v1, got sac"),
        (
            ["--replays", "uniform", "reverse", "--introspective.mix", "0.5"],
            "error: introspective.mix has no effect: introspective is not among the replays (uniform, reverse); "
            "add it or drop the option",
        ),
        (
            ["--policy-delay", "3"],
            "error: policy_delay has no effect: it belongs to td3, the agent here is dqn; drop the option",
        ),
        (
            ["--env-id", "Pendulum-v1", "--double-q", "True"],
            "error: double_q has no effect: it belongs to dqn, the agent here is td3; drop the option",
        ),
        (
            ["--replays", "uniform", "--prioritized-lr-factor", "0.25"],
            "error: prioritized_lr_factor has no effect: prioritized is not among the replays; drop the option",
        ),
        (
            ["--introspective.interleave"],
            "error: introspective.interleave has no effect: a run has a single environment; drop the option",
        ),
        (["--replays", "hindsight"], "error: replays must not hold hindsight for CartPole-v1: its observations have no"),
        (
            ["--preset", "paper", "--env-id", "Pendulum-v1"],
            "error: env_id must be one of CartPole-v1, Acrobot-v1, LunarLander-v3, HalfCheetah-v5, Ant-v5, Hopper-v5, "
            "InvertedDoublePendulum-v5 with preset paper, got Pendulum-v1; use preset tuned",
        ),
        (["--device", "abacus"], "error: device must be one that this machine has, got abacus"),
        (
            ["--stack-seeds", "4", "--search", "4"],
            "error: stack_seeds must be 1 with search, whose trials have one seed each; drop one of the two options",
        ),
    ],
)
def test_wrong_input_gives_one_line(tmp_path, capsys, arguments, message):
    assert main_error(capsys, *arguments, "--output", str(tmp_path)).startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "seeds must be > 0, got 0"),
        (["--jobs", "0"], "jobs must be > 0, got 0"),
        (["--stack-seeds", "0"], "stack_seeds must be > 0, got 0"),
        (["--eval-episodes", "-1"], "eval_episodes must be > 0, got -1"),
        (["--learning-rate", "-1"], "learning_rate must be > 0, got -1.0"),
        (["--gamma", "1.1"], "gamma must be in (0, 1], got 1.1"),
        (["--introspective.mix", "1.5"], "mix must be in [0, 1], got 1.5"),
        (["--replays", "prioritised"], "got prioritised; did you mean prioritized?"),
        (["--replays", "uniform", "uniform"], "replays must be different names, got uniform twice"),
        (["--name", "a/b"], "name must be one folder without '/'"),
        (["--preset", "best"], "tuned, paper, quickstart"),
        (["--gama", "0.9"], "--gamma"),
    ],
)
def test_values_out_of_range_are_refused(capsys, arguments, message):
    assert message in refusal(replay.main, arguments, capsys)


def test_explicit_options_win_over_the_preset():
    study = replay.parse(["--preset", "quickstart", "--seeds", "7", "--learning-rate", "0.01"])
    assert (study.seeds, study.env_id) == (7, ("CartPole-v1", "Acrobot-v1"))
    task = replay.make_task(study, "CartPole-v1")
    assert task.config["options"]["learning_rate"] == 0.01
    assert task.config["options"]["train_freq"] == QUICKSTART["CartPole-v1"].train_freq
    assert task.total_steps == QUICKSTART["CartPole-v1"].total_timesteps


def test_preset_options_that_an_agent_lacks_are_left_out():
    study = replay.parse(["--env-id", "Pendulum-v1", "--agent", "sac", "--preset", "tuned"])
    assert set(replay.make_task(study, "Pendulum-v1").config["options"]) < ACCEPTED["sac"]


def test_an_option_for_one_of_two_agents_reaches_only_that_one():
    study = replay.parse(["--env-id", "CartPole-v1", "Pendulum-v1", "--double-q", "True"])
    tasks = [replay.make_task(study, env_id) for env_id in study.env_id]
    replay.refuse_options_without_effect(study, [task.config["agent"] for task in tasks])
    assert [task.config["agent"] for task in tasks] == ["dqn", "td3"]
    assert [task.config["options"].get("double_q") for task in tasks] == [True, None]


def test_paper_preset_has_the_released_values():
    cartpole, lander = PAPER["CartPole-v1"], PAPER["LunarLander-v3"]
    assert (cartpole.train_freq, cartpole.gradient_steps, cartpole.batch_size) == (512, 500, 64)
    assert (cartpole.learning_rate, cartpole.gamma, cartpole.net_arch) == (5e-5, 0.9, (8, 5))
    assert (cartpole.target_update_interval, lander.target_update_interval) == (15_360, 5_120)
    assert (cartpole.total_timesteps, lander.total_timesteps) == (512_000, 1_024_000)
    assert PAPER["Acrobot-v1"].gradient_steps == 750
    assert PAPER["HalfCheetah-v5"].total_timesteps == 2_000_000


@pytest.mark.parametrize("table", [TUNED, QUICKSTART, PAPER])
def test_presets_use_only_options_of_their_agent(table):
    for env_id, options in table.items():
        continuous = env_id.startswith(("Pendulum", "HalfCheetah", "Ant", "Hopper", "Inverted"))
        assert set(options.given()) <= ACCEPTED["td3" if continuous else "dqn"], env_id


def test_every_option_belongs_to_an_agent():
    assert set(AgentOptions.__dataclass_fields__) == set().union(*ACCEPTED.values())


def test_default_names_tell_studies_apart():
    def name(*arguments):
        return replay.default_name(replay.parse(arguments))

    assert name("--preset", "quickstart") == "quickstart"
    assert name("--env-id", "LunarLander-v3") == "tuned_LunarLander-v3"
    assert name("--learning-rate", "0.01") == "tuned_CartPole-v1_learning_rate=0.01"
    assert name("--introspective.mix", "0.3") == "tuned_CartPole-v1_introspective.mix=0.3"
    # More seeds or replays belong to the same study.
    assert name("--seeds", "9", "--replays", "uniform") == "tuned_CartPole-v1"


def test_stacked_seeds_are_those_of_the_fast_form_in_the_same_study():
    stacked, fast = replay.prepare(["--stack-seeds", "5"]), replay.prepare(["--fast"])
    function, number = stacked.pop("stacked_function"), stacked.pop("stack_seeds")
    assert (function, number) == (stacked["function"] + "_stacked", 5)
    assert stacked == fast
    assert stacked["tasks"][0].config["fast"] is True
    assert replay.prepare(["--stack-seeds", "1"]) == replay.prepare([])


def test_each_replay_has_a_variant():
    study = replay.parse([])
    for name in REPLAYS:
        assert replay.variant(study, name)["replay"] == name


def finish(process):
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@pytest.mark.slow
def test_comparison_end_to_end(tmp_path):
    """Runs, report, a second start that repeats nothing, and a folder of another configuration."""
    arguments = [*TINY, "--replays", "uniform", "introspective", "--seeds", "1", "--output", tmp_path, "--name", "s"]
    code, output = finish(command(*arguments))
    assert code == 0, output
    report = tmp_path / "s" / "report.html"
    assert f"Report: {report}" in output
    assert "introspective" in report.read_text(encoding="utf-8")
    assert "python experiments/replay.py --total-timesteps 300" in (tmp_path / "s" / "report.md").read_text()
    run = tmp_path / "s" / "CartPole-v1" / "introspective" / "seed_0"
    config = json.loads((run / "config.json").read_text())
    assert (config["replay"], config["agent"], config["total_timesteps"]) == ("introspective", "dqn", 300)
    before = (run / "manifest.json").stat().st_mtime_ns

    code, output = finish(command(*arguments))
    assert code == 0
    assert "2 of 2 runs are finished already." in output
    assert (run / "manifest.json").stat().st_mtime_ns == before

    code, output = finish(command(*arguments, "--gamma", "0.5"))
    assert code == 2
    assert output.splitlines()[-1].startswith("error: ")
    assert "holds a run with options.gamma = 0.99, but options.gamma = 0.5 is asked for" in output


@pytest.mark.slow
def test_interrupt_in_the_middle(tmp_path):
    arguments = [*TINY[2:], "--total-timesteps", "100000", "--replays", "uniform", "--seeds", "2", "--jobs", "1"]
    process = command(*arguments, "--output", tmp_path, "--name", "s")
    run = tmp_path / "s" / "CartPole-v1" / "uniform" / "seed_0"
    deadline = time.monotonic() + 300
    while not (run / "live.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 130
    assert "2 runs: 1 interrupted, 1 waiting." in output
    assert "Traceback" not in output
    assert json.loads((run / "manifest.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_continuous_comparison_runs(tmp_path):
    arguments = ["--env-id", "Pendulum-v1", "--replays", "prioritized", "introspective", "--seeds", "1"]
    code, output = finish(command(*TINY, *arguments, "--prioritized.alpha", "0.5", "--output", tmp_path))
    assert code == 0, output
    configs = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("config.json"))]
    assert [config["agent"] for config in configs] == ["td3", "td3"]
    assert [config["replay_options"].get("alpha") for config in configs] == [None, 0.5]


@pytest.mark.parametrize(("given", "written"), [([], None), (["--introspective.rescore-after", "8"], 8)])
def test_an_option_newer_than_a_study_is_part_of_a_run_only_if_it_is_given(given, written):
    study = replay.prepare(["--replays", "introspective", *given])
    assert study["variants"]["introspective"]["replay_options"].get("rescore_after") == written
