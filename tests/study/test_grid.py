"""Parts of a grid for several machines."""

from collections import Counter
from pathlib import Path

import pytest
from commands_of_studies import run
from hypothesis import given
from hypothesis import strategies as st

from rlopt.study import Task
from rlopt.study.grid import expand, part_of
from rlopt.study.runs import read_status


def grid(num_tasks=2, num_variants=3, num_seeds=4):
    tasks = [Task(f"t{i}", 10) for i in range(num_tasks)]
    return expand(Path("s"), tasks, {f"v{i}": {} for i in range(num_variants)}, range(num_seeds))


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 12))
def test_parts_are_disjoint_equal_in_size_and_everything_together(num_tasks, num_variants, num_seeds, count):
    runs = grid(num_tasks, num_variants, num_seeds)
    parts = [part_of(runs, i, count) for i in range(1, count + 1)]
    assert sorted(run.folder for part in parts for run in part) == sorted(run.folder for run in runs)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert parts == [part_of(runs, i, count) for i in range(1, count + 1)]
    for part in parts:
        order = [runs.index(run) for run in part]
        assert order == sorted(order)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_part_has_its_share_of_each_variant_and_task(count):
    """Taking each n-th run would give the same variants to the same part for ever."""
    runs = grid(num_tasks=2, num_variants=4, num_seeds=6)
    for number in range(1, count + 1):
        part = part_of(runs, number, count)
        for feature, total in (("variant", 12), ("task", 24)):
            shares = Counter(getattr(run, feature) for run in part).values()
            assert max(abs(share - total / count) for share in shares) <= 1


def test_two_parts_of_two_variants_by_hand():
    runs = grid(num_tasks=1, num_variants=2, num_seeds=2)
    assert [str(run) for run in part_of(runs, 1, 2)] == ["t0 / v0 / seed 0", "t0 / v1 / seed 1"]
    assert [str(run) for run in part_of(runs, 2, 2)] == ["t0 / v1 / seed 0", "t0 / v0 / seed 1"]


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1, 0)])
def test_a_part_that_is_not_there_is_refused(tmp_path, shard):
    with pytest.raises(ValueError, match=f"shard must be I/N with 1 <= I <= N, got {shard[0]}/{shard[1]}"):
        run(tmp_path, shard=shard)


def test_commands_on_several_machines_share_a_study(tmp_path, capsys):
    folders = [tmp_path / "toy-A-v0" / variant / f"seed_{seed}" for seed in range(2) for variant in ("base", "other")]
    assert run(tmp_path, shard=(1, 2)) == 0
    assert "2 runs in part 1 of 2: 2 finished." in capsys.readouterr().out
    assert [read_status(folder) for folder in folders] == ["finished", "waiting", "waiting", "finished"]
    assert run(tmp_path, shard=(2, 2)) == 0
    assert {read_status(folder) for folder in folders} == {"finished"}
    capsys.readouterr()
    assert run(tmp_path) == 0
    assert "4 of 4 runs are finished already." in capsys.readouterr().out
