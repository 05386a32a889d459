"""What processes share, without starting any: a process that believes to be one of several, and one that works alone.

Real ones are in `tests/distributed`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import make

from rlopt.nn import GeneratorDropout, MoE, TokenChoice
from rlopt.supervised import TrainerConfig
from rlopt.supervised.distributed import Processes, process_group
from rlopt.supervised.sharding import Sharding
from rlopt.supervised.step import layer_recorder, learning_rates


def one_of(size: int, rank: int) -> Processes:
    processes = Processes()
    processes.size, processes.rank = size, rank
    return processes


def test_without_torchrun_parallel_training_is_ordinary_training() -> None:
    alone, parallel = make(dropout=0.2), make(dropout=0.2, parallel="ddp")
    with process_group():
        alone.train()
        parallel.train()
    assert parallel.history == alone.history
    state = parallel.whole_state_dict()
    assert all(torch.equal(state[name], value) for name, value in alone.model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parallel": "dp"}, "parallel must be 'none', 'ddp' or 'fsdp', got 'dp'"),
        ({"expert_parallel": True}, "parallel must be 'ddp' with expert_parallel, got 'none'"),
        ({"expert_parallel": True, "parallel": "fsdp"}, "parallel must be 'ddp' with expert_parallel, got 'fsdp'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainerConfig(**options)


def test_processes_that_have_not_joined_are_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="parallel 'ddp' needs a process group under torchrun"):
        make(parallel="ddp")
    make().train(1)  # for itself


@pytest.mark.parametrize(("size", "parts", "num_rows"), [(2, 1, 7), (3, 2, 12), (3, 2, 17), (4, 1, 4)])
def test_shares_are_all_rows_and_weights_make_their_mean_that_of_all(size: int, parts: int, num_rows: int) -> None:
    rows = torch.arange(float(num_rows)) ** 2
    shares = [one_of(size, rank).share((rows, -rows), parts) for rank in range(size)]
    found = torch.cat([inputs for (inputs, _), _ in shares])
    torch.testing.assert_close(found.sort().values, rows)
    assert all(torch.equal(inputs, -targets) for (inputs, targets), _ in shares)
    mean = sum(weight * inputs.mean() for (inputs, _), weight in shares) / size
    torch.testing.assert_close(mean, rows.mean())


def test_parts_of_a_batch_are_those_of_one_process() -> None:
    (own, _), _ = one_of(2, 1).share((torch.arange(8), torch.arange(8)), 2)
    assert own.tolist() == [2, 3, 6, 7]  # of 0 1 2 3 and of 4 5 6 7


def test_shares_that_cannot_be_are_refused() -> None:
    batch = torch.arange(5), torch.arange(5)
    with pytest.raises(ValueError, match="at least processes times micro_batches, 6, got 5"):
        one_of(3, 0).share(batch, 2)
    with pytest.raises(ValueError, match="divisible by the number of processes, 2, got 5: experts exchange rows of equal shapes"):
        one_of(2, 0).share(batch, equal=True)


@pytest.mark.parametrize("num_batches", [0, 1, 4, 5, 6])
def test_turns_count_every_batch_once_and_are_equally_many(num_batches: int) -> None:
    turns = [list(one_of(3, rank).turns(range(num_batches))) for rank in range(3)]
    assert len({len(own) for own in turns}) == 1
    assert sorted(batch for own in turns for batch, counts in own if counts) == list(range(num_batches))


def test_processes_draw_different_numbers_and_the_first_the_usual_ones() -> None:
    model = torch.nn.Sequential(GeneratorDropout(0.5, 3), MoE(4, 8, 4, TokenChoice(jitter=0.1), seed=5))
    seeds = set()
    for rank in range(3):
        one_of(3, rank).fork_generators(model)
        seeds.add((model[0].seed, model[1].noise.generator.initial_seed()))
        assert rank > 0 or seeds == {(3, 5)}
    assert len(seeds) == 3
    assert one_of(3, 0).seed(7) == 7
    assert len({one_of(3, rank).seed(7, step) for rank in (1, 2) for step in (0, 1)}) == 4


def test_experts_are_asked_for_where_there_are_some() -> None:
    with pytest.raises(ValueError, match="must hold a MoE"):
        make(parallel="ddp", expert_parallel=True)


def test_norms_without_shards_are_those_of_torch() -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    sharding = Sharding(layer, TrainerConfig(), Processes())
    assert learning_rates(optimizer, sharding) == learning_rates(optimizer)
    assert not sharding.has_shards
    assert layer_recorder(optimizer) is None
