"""The schedule that converts layers to tree attention, on small stacks of layers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlopt.nn.attention import SoftmaxAttention
from rlopt.nn.multi_head import MultiHeadAttention
from rlopt.nn.tree_attention import TreeAttention
from rlopt.nn.tree_bootstrap import TreeBootstrapSchedule, build_tree, find_layer_groups


class Stack(nn.Module):
    def __init__(self, num_layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MultiHeadAttention(8, 2, SoftmaxAttention(), causal=True) for _ in range(num_layers))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self.parameters():
                p.normal_(0.0, 0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def kinds(model: Stack) -> list[Any]:
    return [
        (layer.attention.mode, layer.attention.height) if isinstance(layer.attention, TreeAttention) else None
        for layer in model.layers
    ]


def schedule_of(model: Stack, **options: Any) -> TreeBootstrapSchedule:
    return TreeBootstrapSchedule(find_layer_groups(model, group_size=2), [1, 3], steps_per_stage=2, **options)


def test_groups_go_from_the_last_layer_to_the_first() -> None:
    assert find_layer_groups(Stack(), group_size=2) == [["layers.2.attention", "layers.1.attention"], ["layers.0.attention"]]


def test_stages_convert_groups_and_grow_their_trees() -> None:
    model = Stack()
    schedule = schedule_of(model)
    assert schedule.num_stages == 4
    seen = []
    for _ in range(12):
        schedule.step(model)
        seen.append(kinds(model))
    first, second = [None, ("tc", 1), ("tc", 1)], [None, ("tc", 3), ("tc", 3)]
    third, last = [("tf", 1), ("tc", 3), ("tc", 3)], [("tf", 3), ("tc", 3), ("tc", 3)]
    assert seen == [first] * 2 + [second] * 2 + [third] * 2 + [last] * 6
    assert find_layer_groups(model) == []


def test_projections_stay_and_exactly_the_new_parameters_are_returned() -> None:
    model = Stack()
    schedule = schedule_of(model)
    known = {id(p) for p in model.parameters()}
    original = set(known)
    for _ in range(10):
        new = schedule.step(model)
        assert known.isdisjoint(id(p) for p in new)
        known |= {id(p) for p in new}
        assert known == {id(p) for p in model.parameters()}
    assert original < known


def test_converted_layers_with_all_tokens_in_one_leaf_compute_what_they_did() -> None:
    model, x = Stack().double(), torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = model(x)
    schedule = schedule_of(model, modes=["tf", "tf"])
    for _ in range(8):
        schedule.step(model)
    changed = model(x)
    for layer in model.layers:
        for weight, bias in zip(layer.attention.tree.hyperplanes, layer.attention.tree.biases, strict=True):
            nn.init.zeros_(weight)
            nn.init.ones_(bias)
    assert not torch.allclose(changed, expected, atol=1e-3)
    torch.testing.assert_close(model(x), expected, atol=1e-10, rtol=1e-8)


def test_layers_have_trees_of_their_own_and_follow_dtype_and_mode_of_training() -> None:
    model = Stack().double().eval()
    schedule = schedule_of(model, seed=7)
    for _ in range(8):
        schedule.step(model)
    trees = [layer.attention.tree for layer in model.layers]
    assert [tree.seed for tree in trees] == [9, 8, 7]
    assert not torch.equal(trees[1].hyperplanes[0], trees[2].hyperplanes[0])
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 5, 20])
def test_checkpoint_continues_as_if_there_had_been_no_break(num_steps: int) -> None:
    model, schedule = Stack(), schedule_of(Stack())
    for _ in range(num_steps):
        schedule.step(model)
    again, restored = Stack(), schedule_of(Stack())
    restored.load_state_dict(schedule.state_dict(), again)
    again.load_state_dict(model.state_dict())
    for _ in range(9):
        assert len(schedule.step(model)) == len(restored.step(again))
        assert kinds(model) == kinds(again)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_goes_on_through_all_stages() -> None:
    model, x = Stack(), torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    schedule = TreeBootstrapSchedule(find_layer_groups(model), [1, 2], steps_per_stage=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    target, losses = x.cumsum(dim=1) / 4.0, []
    for _ in range(60):
        new = schedule.step(model)
        if new:
            optimizer.add_param_group({"params": new})
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_own_builder_gets_layer_height_mode_and_seed() -> None:
    model, calls = Stack(1), []

    def build(layer: nn.Module, height: int, mode: Any, seed: int) -> TreeAttention:
        calls.append((layer, height, mode, seed))
        return TreeAttention(2, 4, height, "tf", leaf_cap=3)

    TreeBootstrapSchedule([["layers.0.attention"]], [2], 1, build=build, seed=4).step(model)
    assert calls == [(model.layers[0], 2, "tc", 4)]
    assert model.layers[0].attention.leaf_cap == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_groups": []}, "layer_groups must be"),
        ({"layer_groups": [["a"], []]}, "layer_groups must be"),
        ({"layer_groups": [["a"], ["a"]]}, "layer_groups must be"),
        ({"heights": []}, "heights must be increasing"),
        ({"heights": [2, 2]}, "heights must be increasing"),
        ({"steps_per_stage": 0}, "steps_per_stage must be >= 1"),
        ({"modes": ["tf", "tf"]}, "modes must be"),
        ({"modes": ["td"]}, "modes must be"),
    ],
)
def test_wrong_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TreeBootstrapSchedule(**{"layer_groups": [["a"]], "heights": [1, 2], "steps_per_stage": 5, **options})


@pytest.mark.parametrize("name", ["layers.0", "layers.9.attention", "layers.1.attention"])
def test_names_that_cannot_be_converted_are_refused(name: str) -> None:
    model = Stack(2)
    model.layers[1].attention = TreeAttention(2, 4, 1)
    with pytest.raises(ValueError, match="layer_groups must name an Attention that is not a TreeAttention yet"):
        TreeBootstrapSchedule([[name]], [1], 1).step(model)


def test_layer_without_heads_needs_a_builder_and_groups_a_size() -> None:
    with pytest.raises(ValueError, match="build must be given"):
        build_tree(nn.Identity(), 1, "tf", 0)
    with pytest.raises(ValueError, match="group_size must be >= 1"):
        find_layer_groups(Stack(), group_size=0)
