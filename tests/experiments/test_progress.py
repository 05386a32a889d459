"""progress.csv is whole after a kill at any moment, and goes on after a stop."""

from __future__ import annotations

from pathlib import Path

import _progress as progress
import pytest
from _progress import ProgressWriter, continued_logger, read_progress


def test_rows_and_columns_are_added(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    writer = ProgressWriter(path)
    assert path.read_text() == ""
    writer.write({"b": 1, "a": 0.5}, {"a": (), "b": ()})
    writer.write({"a": 1.5, "hidden": 7}, {"a": (), "hidden": ("csv",)})
    assert path.read_text() == "a,b\n0.5,1\n1.5,\n"
    writer.write({"text": 'x,"y"', "nothing": None}, {})
    writer.close()
    assert path.read_text() == 'a,b,text\n0.5,1,\n1.5,,\n,,"x,""y"""\n'
    assert read_progress(path) == [{"a": "0.5", "b": "1"}, {"a": "1.5"}, {"text": 'x,"y"'}]


def test_line_that_is_not_complete_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    path.write_text("time/total_timesteps,x\n1000,1\n2000,2\n30")
    assert [row["x"] for row in read_progress(path)] == ["1", "2"]
    assert read_progress(tmp_path / "nothing") == []


def test_logger_keeps_the_rows_up_to_a_step(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    path.write_text("time/total_timesteps,x\n1000,0.10\n2000,2\n3000,3\n")
    logger = continued_logger(tmp_path, 2000)
    assert path.read_text() == "time/total_timesteps,x\n1000,0.10\n2000,2\n"
    logger.record("y", 5)
    logger.record("time/total_timesteps", 3000, exclude="tensorboard")
    logger.dump(3000)
    logger.close()
    assert path.read_text() == "time/total_timesteps,x,y\n1000,0.10,\n2000,2,\n3000,,5\n"
    continued_logger(tmp_path, 0).close()
    assert path.read_text() == ""


def test_kill_while_the_log_is_taken_over_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "progress.csv"
    before = "time/total_timesteps,x\n1000,1\n2000,2\n"
    path.write_text(before)

    def killed(*args: object, **options: object) -> None:
        assert path.read_text() == before
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        continued_logger(tmp_path, 2000)
    assert path.read_text() == before
