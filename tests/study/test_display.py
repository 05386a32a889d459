"""What a watcher sees."""

import io
import re

import pytest
from rich.console import Console

from rlopt.study.display import LineDisplay, LiveDisplay, Snapshot, make_display
from rlopt.study.live import Row, duration


def snapshot(done, rows=()):
    return Snapshot(done_steps=done, total_steps=200, done_runs=1, total_runs=4, rows=rows)


def test_a_terminal_gets_bars_and_a_file_gets_lines():
    assert isinstance(make_display(Console(file=io.StringIO(), force_terminal=True)), LiveDisplay)
    assert isinstance(make_display(Console(file=io.StringIO())), LineDisplay)


def test_lines_come_now_and_then_with_the_time_left(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("rlopt.study.display.time.monotonic", lambda: clock[0])
    output = io.StringIO()
    with LineDisplay(Console(file=output, width=200)) as display:
        for second, done in ((1, 50), (29, 60), (31, 112), (40, 113), (62, 174)):
            clock[0] = float(second)
            display.update(snapshot(done))
    # 62 steps since the first look took 31 s, so the other 88 will take 44 s.
    assert output.getvalue().splitlines() == [
        "56 % (112/200 steps, 1/4 runs, 0:44 left)",
        "87 % (174/200 steps, 1/4 runs, 0:13 left)",
    ]


def screen(rows, height=30, say=None):
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, height=height, legacy_windows=False, color_system=None)
    with LiveDisplay(console) as display:
        display.update(snapshot(50, rows))
        if say:
            display.say(say)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue())
    return text[text.rindex("1/4 runs") :].splitlines(), text


def test_live_display_shows_all_runs_and_keeps_said_lines():
    rows = [
        Row("toy / [base] / seed 0", "running", 1000, 4000, 50.0, 7.25, 300 * 2**20),
        Row("toy / [base] / seed 1", "running", 0, 4000),
        Row("toy / [base] / seed 2", "finished", 4000, 4000, 2.54, -1.0, 2**20),
        Row("toy / [base] / seed 3", "waiting", 0, 4000),
    ]
    lines, text = screen(rows, say="toy / [base] / seed 2 finished in [3] s")
    assert "50/200 steps" in lines[0]
    assert lines[1].split() == ["run", "state", "step", "of", "steps/s", "time", "left", "last", "score", "memory"]
    # 3000 steps at 50 a second.
    assert lines[2].split("seed 0")[1].split() == ["running", "1,000", "4,000", "50", "1:00", "7.25", "300", "MiB"]
    assert lines[3].split("seed 1")[1].split() == ["running", "0", "4,000"]
    assert lines[4].split("seed 2")[1].split() == ["finished", "4,000", "4,000", "2.5", "-1", "1", "MiB"]
    assert lines[5].split("seed 3")[1].split() == ["waiting", "0", "4,000"]
    assert "toy / [base] / seed 2 finished in [3] s" in text


def test_where_not_all_runs_fit_the_running_ones_are_kept():
    statuses = ["finished"] * 5 + ["waiting"] * 5 + ["running", "failed"]
    lines, _ = screen([Row(f"run {index}", status, 0, 10) for index, status in enumerate(statuses)], height=9)
    shown = [line.rstrip() for line in lines[2:] if line.strip()]
    assert [line.split()[:3] for line in shown[:-1]] == [
        ["run", "10", "running"],
        ["run", "11", "failed"],
        ["run", "5", "waiting"],
        ["run", "6", "waiting"],
    ]
    assert shown[-1] == "and 5 finished, 3 waiting"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3725, "1:02:05")])
def test_durations(seconds, text):
    assert duration(seconds) == text
