"""Sequences of associative recall: what is in them, what a perfect memory and a blind guess score, and that runs continue."""

import pytest
import torch

from rlopt.nn import TransformerConfig
from rlopt.supervised import TrainerConfig
from rlopt.supervised.losses import IGNORED
from rlopt.supervised.recall import (
    RecallConfig,
    RecallData,
    associative_recall,
    draw_sequences,
    recall_accuracy,
)


def read_pairs(tokens, config):
    """Key -> value of one sequence, read token by token."""
    found, place = {}, 0
    body = tokens[: config.length - config.num_queries].tolist()
    while place < len(body):
        token = body[place]
        if token > 0 and config.adjacent:
            assert 1 <= token <= config.num_keys, "a value without a key before it"
            key, value = token - 1, body[place + 1] - 1 - config.num_keys
            place += 1
        elif token > 0:
            key, value = divmod(token - 1 - config.num_keys, config.num_values)
        if token > 0:
            assert key not in found
            assert 0 <= value < config.num_values
            found[key] = value
        place += 1
    return found


@pytest.mark.parametrize("adjacent", [False, True])
@pytest.mark.parametrize(("length", "pairs", "queries"), [(40, 5, 3), (20, 5, 5), (15, 5, 5), (3, 1, 1)])
def test_who_remembers_the_pairs_knows_every_target(length, pairs, queries, adjacent):
    config = RecallConfig(length, pairs, queries, num_keys=7, num_values=3, adjacent=adjacent)
    tokens, targets = draw_sequences(config, 200, torch.Generator().manual_seed(0))
    assert tokens.shape == targets.shape == (200, length)
    assert tokens.max() < config.vocab_size
    assert (targets[:, :-queries] == IGNORED).all()
    for row, wanted in zip(tokens, targets, strict=True):
        memory = read_pairs(row, config)
        assert len(memory) == pairs
        asked = (row[-queries:] - 1).tolist()
        assert len(set(asked)) == queries
        assert [memory[key] for key in asked] == wanted[-queries:].tolist()


def test_values_are_independent_of_keys_and_places_and_uniform():
    config = RecallConfig(12, 2, 1, num_keys=4, num_values=2)
    tokens, targets = draw_sequences(config, 40_000, torch.Generator().manual_seed(1))
    value, key = targets[:, -1], tokens[:, -1] - 1
    for which in range(4):  # 10 000 rows each: five standard errors are 0.025
        assert value[key == which].float().mean().item() == pytest.approx(config.chance, abs=0.025)
    counts = (tokens[:, :-1] > 0).float().mean(0)  # two pairs in eleven places
    torch.testing.assert_close(counts, torch.full((11,), 2 / 11), atol=0.01, rtol=0)


def test_evaluations_are_the_same_for_all_seeds_and_training_is_not():
    config = RecallConfig(20, 4, 2)
    one, other, again = (RecallData(config, batch_size=3, num_eval_rows=7, seed=seed) for seed in (0, 1, 0))
    sizes = [len(tokens) for tokens, _ in one.evaluation()]
    assert sizes == [3, 3, 1]
    for a, b in zip(one.evaluation(), other.evaluation(), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    first, second = one.draw(), one.draw()
    assert torch.equal(first[0], again.draw()[0])
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[0], other.draw()[0])


def test_state_continues_the_sequences():
    config = RecallConfig(20, 4, 2)
    data, fresh = (RecallData(config, batch_size=3, num_eval_rows=1) for _ in range(2))
    data.draw()
    fresh.load_state_dict(data.state_dict())
    assert torch.equal(data.draw()[0], fresh.draw()[0])


def test_accuracy_counts_asked_values_only():
    targets = torch.tensor([[IGNORED, 1, 0], [2, IGNORED, IGNORED]])
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1], [2, 0, 0]]), 3).float()
    assert recall_accuracy(logits, targets).item() == pytest.approx(2 / 3)


def test_one_layer_learns_to_recall_single_tokens():
    form = TransformerConfig(width=32, num_layers=1, num_heads=2, positions="none", init_std=0.1)
    config = RecallConfig(24, 4, 4, num_keys=4, num_values=2)
    task = associative_recall(config, form, batch_size=32, num_eval_rows=64)
    trainer = task.trainer(torch.optim.Adam(task.model.parameters(), lr=1e-2), TrainerConfig(num_steps=150, progress=False))
    assert trainer.train()["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_pairs": 0}, "num_pairs must be >= 1, got 0"),
        ({"num_queries": 9}, r"num_queries must be in \[1, num_pairs = 8\], got 9"),
        ({"num_keys": 7}, "num_keys must be >= num_pairs = 8"),
        ({"num_values": 1}, "num_values must be >= 2, got 1"),
        ({"length": 11}, "length must be >= 12"),
        ({"length": 19, "adjacent": True}, "length must be >= 20"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RecallConfig(**options)


@pytest.mark.parametrize("option", ["batch_size", "num_eval_rows", "eval_batch_size"])
def test_sizes_below_one_are_refused(option):
    with pytest.raises(ValueError, match=f"{option} must be >= 1, got 0"):
        RecallData(RecallConfig(), **{"batch_size": 1, option: 0})
