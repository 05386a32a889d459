"""Checks of scale invariance: on networks whose answer is known, and which tensors break it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from rlopt.nn import (
    CharTransformer,
    CharTransformerConfig,
    LayerNormNoAffine,
    ScaleInvariantConfig,
    ScaleInvariantMLP,
    TransformerConfig,
)
from rlopt.optim import is_scale_invariant, scale_dependent_parameters, split_scale_invariant


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Normalised(nn.Module):
    """y = A LN(W x + b), with a gain that may be there."""

    def __init__(self, *, gain: bool) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.norm = LayerNormNoAffine()
        self.gain = nn.Parameter(torch.linspace(0.5, 2.0, 8)) if gain else None
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x))
        return self.head(torch.relu(hidden if self.gain is None else hidden * self.gain))


def test_answers_for_known_networks() -> None:
    x = inputs(6, 3)
    model = Normalised(gain=False)
    assert is_scale_invariant(model, x, model.first.parameters())
    assert not is_scale_invariant(model, x, [model.first.weight])  # its bias must go along
    assert not is_scale_invariant(model, x, model.head.parameters())
    assert not is_scale_invariant(model, x)
    assert is_scale_invariant(ScaleInvariantMLP(3, (8, 8)), x)


def test_batch_normalisation_is_judged_by_the_mode_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8, eps=1e-30, affine=False))
    before = copy.deepcopy(model.state_dict())
    assert is_scale_invariant(model, inputs(6, 3))
    assert not is_scale_invariant(model.eval(), inputs(6, 3))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_dropout_does_not_disturb_the_check_nor_the_check_the_random_state() -> None:
    model = nn.Sequential(ScaleInvariantMLP(3, (8,)), nn.Dropout(0.5))
    before = torch.get_rng_state()
    assert is_scale_invariant(model, inputs(6, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_that_are_not_finite_are_not_invariant() -> None:
    class Broken(ScaleInvariantMLP):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.nan

    assert not is_scale_invariant(Broken(3, (8,)), inputs(6, 3))


def test_structured_outputs_are_looked_at_completely() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = ScaleInvariantMLP(3, (8,))
            self.other = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> dict[str, object]:
            return {"features": self.features(x), "more": [(self.other(x),)]}

    model = Two()
    assert is_scale_invariant(model, inputs(6, 3), model.features.parameters())
    assert not is_scale_invariant(model, inputs(6, 3))
    assert scale_dependent_parameters(model, inputs(6, 3)) == ["other.weight", "other.bias"]


def test_dependent_parameters_are_named() -> None:
    assert scale_dependent_parameters(Normalised(gain=False), inputs(6, 3)) == ["head.weight", "head.bias"]
    assert scale_dependent_parameters(Normalised(gain=True), inputs(9, 3)) == ["gain", "head.weight", "head.bias"]
    assert scale_dependent_parameters(ScaleInvariantMLP(3, (8, 8)), inputs(6, 3)) == []
    plain = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    # Scaling a layer up and the next one down changes nothing, but one common factor does.
    assert scale_dependent_parameters(plain, inputs(9, 3)) == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("kind", [TransformerConfig, ScaleInvariantConfig])
def test_encoder_and_head_of_the_transformer_are_told_apart(kind: type[TransformerConfig] | type[ScaleInvariantConfig]) -> None:
    model = CharTransformer(CharTransformerConfig(7, kind(context=6, num_layers=1, num_heads=2, width=8, init_std=0.5)))
    tokens = torch.randint(7, (3, 6), generator=torch.Generator().manual_seed(0))
    invariant, others = split_scale_invariant(model, tokens)
    expected = {id(p) for p in model.scale_invariant_parameters()}
    assert {id(p) for p in invariant} == expected
    assert {id(p) for p in others} == {id(p) for p in model.parameters()} - expected


def test_ordinary_normalisation_fails_where_weights_are_small() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8, elementwise_affine=False))
    assert not is_scale_invariant(model, inputs(6, 3), rtol=1e-3)
    assert is_scale_invariant(model, inputs(6, 3), factors=(10.0, 1000.0), rtol=1e-2)


def test_wrong_use_is_named() -> None:
    model = ScaleInvariantMLP(3, (8,))
    for factors in ((), (0.0,), (-1.0,), (1.0,)):
        with pytest.raises(ValueError, match="factors must be positive numbers other than 1"):
            is_scale_invariant(model, inputs(6, 3), factors=factors)
    with pytest.raises(ValueError, match="parameters must be parameters of the model"):
        is_scale_invariant(model, inputs(6, 3), [torch.zeros(1)])
    with pytest.raises(ValueError, match="parameters must hold at least one tensor"):
        is_scale_invariant(model, inputs(6, 3), [])
    with pytest.raises(ValueError, match=r"inputs must give more output entries than there are parameter tensors \(4\), got 2"):
        scale_dependent_parameters(Normalised(gain=False), inputs(1, 3))
