"""Bad input is answered in one sentence that says what is allowed and what came, and nothing that was there is lost."""

from __future__ import annotations

import hashlib
import importlib
import re
from pathlib import Path

import pytest

from scripts.table_errors import page
from tests.malformed_inputs import Row, all_rows

ROOT = Path(__file__).parents[1]
ROWS = all_rows()


@pytest.fixture(autouse=True)
def _no_study_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Command lines that are not refused fail here instead of running for hours."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.chdir(tmp_path)


def content(folder: Path) -> dict[str, str]:
    """Names of all files and folders, but for the lock of a study, and what they hold."""
    paths = [path for path in folder.rglob("*") if path.name != ".lock"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in paths}


def run_command(line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a command in this process; returns what it says on stderr."""
    script, *arguments = line.split()
    module = importlib.import_module("rlopt.__main__" if script == "rlopt" else script)
    if "--output" not in arguments:  # nothing that is there can be in the way
        command = importlib.import_module("_command")
        monkeypatch.setattr(command, "run_study", lambda **_: pytest.fail("a study starts"))
    try:
        status = module.main(arguments)
    except SystemExit as exit_:
        status = exit_.code
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    return captured.err


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.group}: {row.what}" for row in ROWS])
def test_bad_input(row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if row.before is not None:
        row.before(tmp_path)
    there = content(tmp_path)
    if row.work is None:
        line = row.what.partition(" (")[0].replace("TMP", str(tmp_path))
        said = run_command(line, capsys, monkeypatch)
    else:
        with pytest.raises(row.kind) as caught:
            row.work(tmp_path)
        said = str(caught.value)
    expected = re.escape(row.message).replace(re.escape("..."), ".*").replace("TMP", re.escape(str(tmp_path)))
    assert re.fullmatch(expected, said), said
    assert said.rstrip("\n").count("\n") == 0
    assert content(tmp_path) == there


def test_there_are_many() -> None:
    assert len(ROWS) >= 80
    assert len({(row.group, row.what) for row in ROWS}) == len(ROWS)


def test_page_lists_them() -> None:
    written = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert written == page(), "run: python scripts/table_errors.py > docs/errors.md"
