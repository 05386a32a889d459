"""The measuring scripts' own machinery: turns, ratios, the file, and the suite with parts of straw."""

from __future__ import annotations

import importlib
import itertools
import json
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tyro

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script by its name."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def import_script(name: str) -> ModuleType:
        return importlib.import_module(name)

    return import_script


@pytest.fixture
def bench(load: Any) -> Any:
    return load("_bench")


def comparison(bench: Any, **changes: Any) -> Any:
    seconds = {"ours": [1.0, 2.0, 4.0], "peer": [3.0, 2.0, 16.0], "floor": [0.5, 0.5, 2.0]}
    return bench.Comparison(**{"what": "w", "unit": "call", "seconds": seconds, "ours": ("ours",), "peers": ("peer",), **changes})


def test_contestants_take_turns_round_after_round(bench: Any) -> None:
    calls: list[str] = []
    times = bench.take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 3, warm_up=2)
    assert calls == ["a", "a", "b", "b"] + ["a", "b"] * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}


def test_times_are_of_one_call_each_and_per_round(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(bench.time, "process_time", lambda: now[0])
    durations = {"a": itertools.chain([9.0, 9.0], itertools.repeat(2.0)), "b": iter([9.0, 3.0, 4.0, 5.0])}

    def work(name: str) -> None:
        now[0] += next(durations[name])

    assert bench.take_turns({"b": lambda: work("b")}, 3) == {"b": [3.0, 4.0, 5.0]}
    # One call to warm up, one of 9 s to count: a block of 27 s has three calls of 2 s.
    assert bench.take_turns({"a": lambda: work("a")}, 2, block_seconds=27.0) == {"a": [2.0, 2.0]}
    assert next(durations["a"]) == 2.0
    assert now[0] == 9.0 + 12.0 + 9.0 + 9.0 + 6 * 2.0


def test_ratios_are_medians_of_the_rounds_own_ratios(bench: Any) -> None:
    both = comparison(bench, limit="floor")
    assert both.speed_up("ours", "peer") == (3.0, 1.0, 4.0)  # 3/1, 2/2, 16/4
    assert both.times_limit("ours") == (2.0, 2.0, 4.0)  # 1/0.5, 2/0.5, 4/2
    assert comparison(bench).times_limit("ours") is None
    assert str(both.speed_up("ours", "peer")) == "3.00 (1.00 to 4.00)"
    assert str(both.speed_up("peer", "ours")) == "0.333 (0.250 to 1.000)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peers": ("nobody",)}, "got none of 'nobody'"),
        ({"limit": "nothing"}, "got none of 'nothing'"),
        ({"seconds": {"ours": [1.0], "peer": [1.0, 2.0]}}, "equally many rounds"),
    ],
)
def test_comparisons_without_times_are_refused(bench: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        comparison(bench, **changes)


def test_a_device_that_is_not_there_is_refused(bench: Any) -> None:
    with pytest.raises(ValueError, match="device must be cpu, or cuda where there is one, got tpu"):
        bench.clock_of("tpu")


def test_file_has_machine_versions_and_all_rounds(bench: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "part.json"
    bench.write_json(path, [comparison(bench, limit="floor")], settings={"quick": True, "path": Path("x")})
    content = json.loads(path.read_text())
    assert {"processor", "flags", "num_cores", "memory_gib", "load"} <= set(content["machine"])
    assert {"python", "numpy", "torch"} <= set(content["versions"])
    assert content["date"][4] == "-"
    assert content["settings"] == {"quick": True, "path": "x"}
    assert content["comparisons"][0]["seconds"]["peer"] == [3.0, 2.0, 16.0]
    assert bench.comparisons_of(content) == [comparison(bench, limit="floor")]
    assert [file.name for file in path.parent.iterdir()] == ["part.json"]


PART = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {scripts!r})
    from _bench import Comparison, ENVIRONMENT_STEP, write_json
    print("a table", *sys.argv[1:-2])
    seconds = {{"us": [1e-3, 2e-3, 4e-3], "them": [3e-3, 8e-3, 8e-3], "least": [5e-4, 5e-4, 2e-3]}}
    found = [Comparison("work", "call", seconds, ("us",), ("them",), "least"),
             Comparison("steps", ENVIRONMENT_STEP, seconds, ("us",), ("them", "least"))]
    write_json(Path(sys.argv[-1]), found, left_out=["nobody: not there"])
"""


@pytest.fixture
def suite(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The suite with two parts of straw, of which the first fails."""
    module = load("bench_suite")
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "bench_good.py").write_text(textwrap.dedent(PART.format(scripts=str(SCRIPTS))))
    (scripts / "bench_bad.py").write_text("import sys\nsys.exit('error: no straw left')\n")
    parts = {"bad": module.Part("bad"), "good": module.Part("good", ("--full",), ("--small",), has_device=False)}
    monkeypatch.setattr(module, "SCRIPTS", scripts)
    monkeypatch.setattr(module, "PARTS", parts)
    monkeypatch.setattr(module, "has_gpu", lambda: False)
    return module


def test_suite_prints_one_table_and_keeps_the_other_parts_if_one_fails(
    suite: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    assert suite.main(suite.Config(("bad", "good"), quick=True, folder=folder)) == 1
    printed = capsys.readouterr()
    assert "bad failed (exit 1): error: no straw left" in printed.err
    rows = [" ".join(line.split()) for line in printed.out.splitlines() if line.strip().startswith("good")]
    assert rows[0] == "good work us 2 ms them 3.00 (2.00 to 4.00) 2.00 (2.00 to 4.00)"
    assert rows[1] == "good steps us 500 / s them 3.00 (2.00 to 4.00)"
    assert rows[2] == "good steps us 500 / s least 0.500 (0.250 to 0.500)"
    assert "left out of good: nobody: not there" in printed.out
    content = json.loads((folder / "suite.json").read_text())
    assert list(content["parts"]) == ["good"]
    assert content["settings"]["quick"] is True
    assert content["parts"]["good"]["comparisons"][0]["seconds"]["us"] == [1e-3, 2e-3, 4e-3]
    assert content["parts"]["good"]["wall_seconds"] >= content["parts"]["good"]["cpu_seconds"] * 0.4 > 0.0
    assert (folder / "good.txt").read_text() == "a table --small\n"
    assert "<svg" in (folder / "suite.svg").read_text()


def test_parts_run_on_the_gpu_too_where_there_is_one(suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "has_gpu", lambda: True)
    monkeypatch.setattr(suite, "PARTS", {"good": suite.Part("good", ("--full",)), "cpu": suite.Part("good", has_device=False)})
    assert suite.main(suite.Config(("good", "cpu"), folder=tmp_path)) == 0
    assert list(json.loads((tmp_path / "suite.json").read_text())["parts"]) == ["good", "good, GPU", "cpu"]
    assert (tmp_path / "good, GPU.txt").read_text() == "a table --full --device cuda\n"


def test_unknown_parts_are_refused(suite: Any) -> None:
    with pytest.raises(ValueError, match="parts must be among bad, good, got ugly"):
        suite.Config(("ugly",))


def test_options_of_all_parts_are_those_of_their_scripts(load: Any) -> None:
    for part in load("bench_suite").PARTS.values():
        module = load(f"bench_{part.script}")
        for options in (part.full, part.quick):
            device = ["--device", "cpu"] if part.has_device else []
            config = tyro.cli(module.Config, args=[*options, part.file_option, "x.json", *device])
            assert getattr(config, part.file_option.removeprefix("--")) == Path("x.json")


def test_all_forms_of_adam_and_of_target_updates_run(load: Any) -> None:
    adam = load("bench_adam")
    for make in (adam.adams, adam.target_updates):
        works = make("dqn", "cpu")
        assert {adam.OURS, adam.FLOOR} < set(works)
        for work in works.values():
            work()


def test_page_gets_its_tables_between_the_marks(suite: Any, load: Any, tmp_path: Path) -> None:
    suite.main(suite.Config(("good",), quick=True, folder=tmp_path))
    tables, page = load("table_performance"), tmp_path / "page.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    tables.main(tables.Config(tmp_path / "suite.json", page))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text  # noqa: PT018
    assert "`scripts/bench --quick`" in text
    assert "| work | us | 2 ms | them | 3.00 (2.00 to 4.00) | 2.00 (2.00 to 4.00) |\n" in text
    tables.main(tables.Config(tmp_path / "suite.json", page))
    assert page.read_text() == text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="page must have the marks"):
        tables.main(tables.Config(tmp_path / "suite.json", page))
    with pytest.raises(ValueError, match=r"path must be a file that scripts/bench wrote, got .*good\.txt"):
        tables.main(tables.Config(tmp_path / "good.txt", page))
