"""What a watcher sees."""

import io

import pytest
from rich.console import Console

from rlopt.study.display import LineDisplay, LiveDisplay, Snapshot, make_display


def snapshot(done, active):
    return Snapshot(done_steps=done, total_steps=200, done_runs=1, total_runs=4, active=active)


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
            display.update(snapshot(done, {}))
    # 62 steps since the first look took 31 s, so the other 88 will take 44 s.
    assert output.getvalue().splitlines() == [
        "56 % (112/200 steps, 1/4 runs, 0:44 left)",
        "87 % (174/200 steps, 1/4 runs, 0:13 left)",
    ]


def test_live_display_shows_active_runs_and_keeps_said_lines():
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, legacy_windows=False)
    with LiveDisplay(console) as display:
        display.update(snapshot(50, {"toy / base / seed 0": (10, 100, None), "toy / base / seed 1": (20, 100, 7.25)}))
        display._progress.refresh()
        first = output.getvalue()
        display.say("toy / base / seed 0 finished in [3] s")
        display.update(snapshot(110, {"toy / base / seed 1": (30, 100, 8.0)}))
        display._progress.refresh()
    last = output.getvalue()[len(first) :]
    assert "50/200 steps" in first
    assert "toy / base / seed 0" in first
    assert "score 7.25" in first
    assert "toy / base / seed 0 finished in [3] s" in last
    assert "30/100 steps" in last
    final = last[last.rindex("all runs") :]
    assert "110/200 steps" in final
    assert "seed 0" not in final


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3725, "1:02:05")])
def test_durations(seconds, text):
    from rlopt.study.display import _duration

    assert _duration(seconds) == text
