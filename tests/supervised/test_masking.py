"""Hidden characters: how many, what stands in their place, the same at every evaluation, and that both sides are used."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlopt.data import Dataset
from rlopt.nn import ExpertChoice, MoEConfig, SoftMoEConfig, TransformerConfig
from rlopt.optim import Adam
from rlopt.supervised import TextWindows, TrainerConfig
from rlopt.supervised.losses import IGNORED, token_cross_entropy
from rlopt.supervised.masking import MaskedWindows, masked_language_model

SMALL = TransformerConfig(width=16, num_layers=1, num_heads=2, causal=False)


def text(num: int = 400) -> Dataset:
    codes = (np.arange(num) ** 2 % 7).astype(np.uint8)
    return Dataset("squares", codes[:-1], codes[1:], codes[:99], codes[1:100], target_names=tuple("abcdefg"))


def windows(length: int, batch_size: int, mask_rate: float = 0.15, seed: int = 0, vocab_size: int = 50) -> MaskedWindows:
    codes = torch.randint(vocab_size, (5000,), generator=torch.Generator().manual_seed(7))
    plain = TextWindows(codes, codes[:200], length=length, batch_size=batch_size, num_eval_windows=10, seed=seed)
    return MaskedWindows(plain, vocab_size, mask_rate=mask_rate, seed=seed)


@pytest.mark.parametrize(("length", "rate", "chosen"), [(20, 0.15, 3), (64, 0.15, 10), (4, 0.15, 1), (10, 0.5, 5)])
def test_every_window_hides_equally_many_characters(length: int, rate: float, chosen: int) -> None:
    inputs, targets = windows(length, 7, rate).draw()
    assert inputs.shape == targets.shape == (7, length)
    assert (targets != IGNORED).sum(dim=1).tolist() == [chosen] * 7


def test_targets_are_the_hidden_characters_and_others_are_as_they_were() -> None:
    codes = torch.arange(600) % 50
    plain = TextWindows(codes, codes, length=30, batch_size=20, seed=3)
    masked = MaskedWindows(TextWindows(codes, codes, length=30, batch_size=20, seed=3), 50, mask_rate=0.3)
    original = plain.draw()[0]
    inputs, targets = masked.draw()
    chosen = targets != IGNORED
    assert torch.equal(targets[chosen], original[chosen])
    assert torch.equal(inputs[~chosen], original[~chosen])


def test_shares_of_mask_random_and_unchanged_characters_are_those_of_bert() -> None:
    inputs, targets = windows(50, 2000, 0.5).draw()
    chosen = targets != IGNORED
    shown, found = inputs[chosen], targets[chosen]
    num = len(found)
    masked, kept = (shown == 50).double().mean().item(), (shown == found).double().mean().item()
    for share, expected in ((masked, 0.8), (kept, 0.1 + 0.1 / 50), (1 - masked - kept, 0.1 - 0.1 / 50)):
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / num)
    assert chosen.double().mean(dim=0).sub(0.5).abs().max() < 4 * math.sqrt(0.25 / 2000)  # no place is preferred
    assert shown.max() == 50
    assert shown.min() == 0


def test_evaluations_hide_the_same_whatever_was_drawn_and_whatever_the_seed() -> None:
    data = windows(20, 4)
    before = list(data.evaluation())
    data.draw()
    for other in (data, windows(20, 4, seed=9)):
        for one, two in zip(before, other.evaluation(), strict=True):
            assert torch.equal(one[0], two[0])
            assert torch.equal(one[1], two[1])


def test_seed_and_state_decide_what_is_drawn_and_global_generators_are_left_alone() -> None:
    before = torch.random.get_rng_state()
    data, other = windows(20, 4), windows(20, 4, seed=1)
    data.draw()
    state = data.state_dict()
    batch = data.draw()
    other.load_state_dict(state)
    assert all(torch.equal(one, two) for one, two in zip(batch, other.draw(), strict=True))
    assert not torch.equal(windows(20, 4).draw()[1], windows(20, 4, seed=1).draw()[1])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_loss_is_that_of_hidden_characters_and_a_mean_over_windows() -> None:
    targets = windows(20, 4, vocab_size=5).draw()[1]
    logits = torch.randn(4, 20, 6, generator=torch.Generator().manual_seed(0))
    chosen = targets != IGNORED
    assert torch.equal(token_cross_entropy(logits, targets), nn.functional.cross_entropy(logits[chosen], targets[chosen]))
    single = [token_cross_entropy(logits[i : i + 1], targets[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(token_cross_entropy(logits, targets), torch.stack(single).mean())


@pytest.mark.parametrize(
    "moe", [None, MoEConfig(num_experts=2, every=1, router=ExpertChoice(1.0)), SoftMoEConfig(num_experts=2, every=1)]
)
def test_hidden_characters_are_found_from_both_sides(moe: MoEConfig | SoftMoEConfig | None) -> None:
    form = replace(SMALL, width=32, positions="rotary", moe=moe)
    task = masked_language_model(text(), transformer=form, length=12, batch_size=24)
    assert task.name == "masked_language_model-squares"
    start = task.trainer("adam").evaluate()
    assert start["loss"] == pytest.approx(math.log(8), rel=0.1)  # seven characters and the mask
    assert task.trainer(Adam(lr=1e-2), TrainerConfig(num_steps=150)).train()["loss"] < 0.7  # single characters: 1.35


def test_auxiliary_losses_can_be_added() -> None:
    form = replace(SMALL, moe=MoEConfig(num_experts=2, every=1, router=ExpertChoice(1.0)))
    task = masked_language_model(text(), transformer=form, aux_loss_coefs={"router_z": 0.1}, length=8)
    found = task.trainer("adam").evaluate()
    assert found["loss"] == pytest.approx(found["nats"] + 0.1 * found["router_z"], rel=1e-6)


def test_a_model_of_ones_own_sees_one_code_more() -> None:
    largest: list[int] = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(8, 8))

        def forward(self, tokens: Tensor) -> Tensor:
            largest.append(int(tokens.max()))
            return self.table[tokens]

    masked_language_model(text(), Model(), length=8).trainer("adam", TrainerConfig(num_steps=2)).train()
    assert max(largest) == 7


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="transformer must have causal=False"):
        masked_language_model(text(), transformer=TransformerConfig())
    with pytest.raises(ValueError, match="transformer must be None with a model of your own"):
        masked_language_model(text(), nn.Identity(), transformer=SMALL)
    for rate in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"mask_rate must be in \(0, 1\)"):
            masked_language_model(text(), mask_rate=rate)
