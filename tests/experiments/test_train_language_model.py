"""The command that trains one language model, alone and by torchrun."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import train_language_model as experiment
from commands import ROOT, refusal, run

from rlopt.data import load

sys.path.insert(0, str(ROOT / "tests" / "distributed"))
from launching import torchrun

SMALL = ["--num-steps", "8", "--warmup-steps", "2", "--width", "16", "--num-layers", "2", "--num-heads", "2", "--context", "8"]
EXPERTS = ["--num-experts", "4", "--eval-every", "4", "--save-every", "4", "--log-every", "2", "--name", "run"]

# Changing this list changes the interface that users type: do it deliberately, and tell it in the changelog.
OPTIONS = [
    *("--balance-coef", "--batch-size", "--clip-norm", "--context", "--device", "--dropout", "--eval-every", "--expert-parallel"),
    *("--help", "--log-every", "--lr", "--moe-every", "--name", "--no-expert-parallel", "--num-experts", "--num-heads"),
    *("--num-layers", "--num-steps", "--optimizer", "--output", "--parallel", "--precision", "--router-z-coef", "--save-every"),
    *("--seed", "--top-k", "--warmup-steps", "--weight-decay", "--width"),
]


def test_option_list(capsys):
    with pytest.raises(SystemExit):
        experiment.main(["--help"])
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    words = " ".join(line for line in lines if line.startswith("-")).replace(",", " ").split()
    assert sorted({word for word in words if word.startswith("--") and word.strip("-")}) == OPTIONS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-steps", "0"], "num_steps must be > 0, got 0"),
        (["--lr", "0"], "lr must be > 0, got 0.0"),
        (["--weight-decay", "-1"], "weight_decay must be >= 0, got -1.0"),
        (["--context", "1"], "context must be > 1, got 1"),
        (["--warmup-steps", "2000"], "warmup_steps must be in [0, num_steps = 2000), got 2000"),
        (["--num-experts", "1"], "num_experts must be > 1 and at least top_k = 2, got 1"),
        (["--expert-parallel"], "num_experts must be given with expert_parallel"),
        (["--num-experts", "4", "--expert-parallel", "--parallel", "fsdp"], "parallel must be ddp with expert_parallel, got fsdp"),
        (["--device", "tpu"], "device must be cpu or cuda, got tpu"),
        (["--name", "a/b"], "name must be one folder without '/'"),
    ],
)
def test_values_out_of_range_are_refused(capsys, arguments, message):
    assert message in refusal(experiment.main, arguments, capsys)


def test_the_folder_tells_what_changes_numbers_and_nothing_else():
    one = experiment.Options(lr=0.1, parallel="fsdp", eval_every=7)
    assert one.folder == Path("runs/train_language_model/model_lr=0.1")


@pytest.fixture
def _text():
    try:
        load("tiny_shakespeare", download=False)
    except (FileNotFoundError, ValueError) as error:
        pytest.skip(f"needs the text: {error}")


@pytest.mark.usefixtures("_text")
def test_missing_text_and_another_run_are_one_line(capsys, tmp_path, monkeypatch):
    def load(name):
        raise FileNotFoundError(f"data set {name} is nowhere")

    arguments = [*SMALL, *EXPERTS, "--output", str(tmp_path)]
    monkeypatch.setattr(experiment, "load", load)
    assert refusal(experiment.main, arguments, capsys) == "error: data set tiny_shakespeare is nowhere"
    monkeypatch.undo()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"num_steps": 9}')
    assert "error: num_steps must be that of the run in" in refusal(experiment.main, arguments, capsys)


@pytest.mark.slow
@pytest.mark.usefixtures("_text")
def test_two_processes_with_shared_out_experts_go_on_where_one_stopped_and_report_the_same(tmp_path):
    script = ROOT / "experiments" / "train_language_model.py"
    arguments = [*SMALL, *EXPERTS, "--output", str(tmp_path / "alone")]
    status, alone = run(script.name, *arguments)
    assert status == 0, alone
    status, together = torchrun(2, script, *SMALL, *EXPERTS, "--output", str(tmp_path / "together"), "--expert-parallel")
    assert status == 0, together
    nats = [float(re.findall(r"(\d\.\d+) nats per character .* after 8 steps", text)[0]) for text in (alone, together)]
    assert nats[0] == pytest.approx(nats[1], abs=1.1e-4)  # four digits are printed
    status, again = run(script.name, *SMALL, *EXPERTS, "--output", str(tmp_path / "together"))
    assert status == 0, again
    assert "after 8 steps (8 of them before) by one process" in again
    assert len(list((tmp_path / "together" / "run").glob("events*"))) <= 2


@pytest.mark.slow
@pytest.mark.usefixtures("_text")
def test_wrong_input_is_told_once_under_torchrun(tmp_path):
    script = ROOT / "experiments" / "train_language_model.py"
    status, output = torchrun(2, script, "--num-experts", "3", "--expert-parallel", "--output", str(tmp_path), limit=120.0)
    assert status != 0
    ours = output.partition("torch/distributed/elastic")[0]
    assert ours.count("error: num_experts must be divisible by the number of processes, got 3 experts") == 1, output
    assert "Traceback" not in ours
