"""The monitor of hidden units: exact counts on activations made by hand, masks, merging, processes, and hooks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from rlopt.nn.sparsity_monitor import SparsityMonitor
from rlopt.nn.topk_mlp import TopKMLP

# Four tokens, five units: unit 0 is always on, unit 4 never.
ACTIVATIONS = torch.tensor(
    [
        [1.0, 0.0, 2.0, -1.0, 0.0],
        [3.0, 0.0, -2.0, 1.0, -1.0],
        [0.5, 4.0, 0.0, 0.0, -2.0],
        [0.1, 0.0, 1.0, 0.0, 0.0],
    ]
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exact(nnz: float, dead: float, always_on: float) -> dict[str, float]:
    return {"nnz_fraction": nnz, "dead_fraction": dead, "always_on_fraction": always_on}


def test_fractions_of_activations_made_by_hand() -> None:
    model = nn.Sequential(nn.ReLU())
    monitor = SparsityMonitor(model)
    model(ACTIVATIONS)
    # Active: 4 (unit 0), 1 (unit 1), 2 (unit 2), 1 (unit 3), 0 (unit 4).
    assert monitor.report() == {"0": exact(8 / 20, 1 / 5, 1 / 5)}
    model(ACTIVATIONS[:, [4, 0, 4, 4, 4]])  # calls add up: now only unit 1 is active, four times
    # Active of 8 tokens: 4, 5, 2, 1, 0: no unit is always on any more.
    assert monitor.report() == {"0": exact(12 / 40, 1 / 5, 0.0)}
    monitor.reset()
    assert monitor.report() == {}
    model(ACTIVATIONS[:1])
    assert monitor.report() == {"0": exact(2 / 5, 3 / 5, 2 / 5)}


def test_padding_is_left_out() -> None:
    model = nn.Sequential(nn.ReLU())
    padded = torch.full((2, 3, 5), 7.0)  # (B, L, units); padding would count as active
    padded[0, :3], padded[1, 0] = ACTIVATIONS[:3], ACTIVATIONS[3]
    valid = torch.tensor([[True, True, True], [True, False, False]])
    with SparsityMonitor(model) as monitor:
        with monitor.only(valid):
            model(padded)
        assert monitor.report() == {"0": exact(8 / 20, 1 / 5, 1 / 5)}
        model(padded)  # outside, all count
        assert monitor.state_dict()["0/tokens"].item() == 4 + 6


def test_mask_of_another_shape_or_type_is_refused() -> None:
    model = nn.Sequential(nn.ReLU())
    monitor = SparsityMonitor(model)
    with (
        pytest.raises(ValueError, match=r"valid must have the shape of .* of 0 without the units, \(4,\), got \(3,\)"),
        monitor.only(torch.ones(3, dtype=torch.bool)),
    ):
        model(ACTIVATIONS)
    model(ACTIVATIONS)  # the mask is gone after an error
    with pytest.raises(TypeError, match="valid must be a tensor of bools"), monitor.only(torch.ones(4)):
        pass


def test_random_network_has_half_of_its_units_active_and_a_top_k_network_has_k() -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(64, 512, bias=False)
    nn.init.normal_(linear.weight, generator=generator)
    model = nn.Sequential(linear, nn.ReLU())
    with SparsityMonitor(model) as monitor:
        model(randn(500, 64))
    assert monitor.report()["1"]["nnz_fraction"] == pytest.approx(0.5, abs=0.02)
    for sparse in (False, True):
        mlp = TopKMLP(64, 512, 32, sparse_second_matmul=sparse)
        with SparsityMonitor(mlp) as monitor:
            mlp(randn(5, 40, 64))
        report = monitor.report()["activation"]
        assert report["nnz_fraction"] == 32 / 512  # half of 512 are positive, so all 32 places are taken


def test_both_forms_of_top_k_count_the_same() -> None:
    states = []
    for sparse in (False, True):
        mlp = TopKMLP(8, 64, 5, sparse_second_matmul=sparse)
        with SparsityMonitor(mlp) as monitor:
            mlp(randn(30, 8))
        states.append(monitor.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU()])
def test_smooth_activations_are_measured_by_a_threshold_under_other_names(activation: nn.Module) -> None:
    model = nn.Sequential(activation)
    x = torch.tensor([[-20.0, 0.5, 3.0], [-25.0, 0.0, 3.0]])
    with SparsityMonitor(model, threshold=0.1) as monitor:
        model(x)
    values = {"above_0.1_fraction": 3 / 6, "never_above_0.1_fraction": 1 / 3, "always_above_0.1_fraction": 1 / 3}
    assert monitor.report() == {"0": pytest.approx(values, rel=1e-12)}


def test_layers_are_found_by_type_or_named() -> None:
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh()), "gate": nn.GELU()})
    assert SparsityMonitor(model).layers == ("body.1", "gate")
    assert SparsityMonitor(model, layers=["body.3", "body.2"]).layers == ("body.3", "body.2")
    with SparsityMonitor(model, layers=["body.3"]) as monitor:
        model["body"](randn(7, 3))
    assert "above_0.001_fraction" in monitor.report()["body.3"]
    with pytest.raises(ValueError, match="layers must be names of modules of the model, got 'head'"):
        SparsityMonitor(model, layers=["head"])
    with pytest.raises(ValueError, match="layers must name at least one module"):
        SparsityMonitor(model, layers=[])
    with pytest.raises(ValueError, match="model must hold a ReLU, GELU"):
        SparsityMonitor(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="threshold must be >= 0, got nan"):
        SparsityMonitor(model, threshold=float("nan"))


def test_channels_of_images_are_units_with_neuron_dim_one() -> None:
    model = nn.Sequential(nn.ReLU())
    images = torch.full((2, 3, 4, 5), -1.0)
    images[:, 1] = 1.0
    images[0, 2, 0, 0] = 1.0
    with SparsityMonitor(model, neuron_dim=1) as monitor:
        model(images)
    assert monitor.state_dict()["0/active"].tolist() == [0, 40, 1]
    assert monitor.report()["0"] == pytest.approx(exact(41 / 120, 1 / 3, 1 / 3), rel=1e-12)


def test_two_shards_merge_to_the_whole() -> None:
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4), nn.GELU())
    x = randn(20, 6)
    whole, first, second = (SparsityMonitor(model) for _ in range(3))
    second.remove()
    model(x[:7])
    first.remove()
    rest = SparsityMonitor(model)
    model(x[7:])
    rest.remove()
    first.merge(rest.state_dict())
    second.merge(first.state_dict())  # into one that has seen nothing
    assert first.report() == whole.report() == second.report()
    assert rest.report() != whole.report()
    with pytest.raises(ValueError, match=r"state must be of the layers 1, 3, got '5/active'"):
        first.merge({"5/active": torch.zeros(9), "5/tokens": torch.tensor(1)})
    with pytest.raises(ValueError, match=r"1/active must have shape \(9,\), got \(8,\)"):
        first.merge({"1/active": torch.zeros(8), "1/tokens": torch.tensor(1)})


def test_layer_with_another_width_in_a_later_call_is_refused() -> None:
    shared = nn.ReLU()
    monitor = SparsityMonitor(nn.Sequential(shared))
    shared(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"layer 0 must have the same number of units in every call, got 4 after 3"):
        shared(torch.ones(2, 4))
    assert monitor.state_dict()["0/tokens"].item() == 2


def test_hooks_go_and_nothing_else_changes() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    x = randn(5, 3).requires_grad_()
    plain = torch.autograd.grad(model(x).sum(), x)[0]
    with SparsityMonitor(model) as monitor:
        watched = torch.autograd.grad(model(x).sum(), x)[0]
    assert torch.equal(plain, watched)
    before = monitor.report()
    model(x)
    assert monitor.report() == before, "removed at the end of the context"
    assert not any(module._forward_hooks for module in model.modules())


def test_scalars_are_flat_and_tensorboard_takes_them(tmp_path: Path) -> None:
    model = nn.Sequential(nn.ReLU(), nn.GELU())
    with SparsityMonitor(model) as monitor:
        model(ACTIVATIONS)
    scalars = monitor.scalars("hidden")
    assert scalars["hidden/0/nnz_fraction"] == 8 / 20
    assert len(scalars) == 6
    with SummaryWriter(str(tmp_path)) as writer:
        for name, value in scalars.items():
            writer.add_scalar(name, value, 0)
    assert list(tmp_path.iterdir())


PROCESS = """
import sys, torch
from torch import nn
from rlopt.nn.sparsity_monitor import SparsityMonitor
rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
model = nn.ModuleList([nn.ReLU(), nn.ReLU()])
monitor = SparsityMonitor(model)
x = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
model[0](x[:2] if rank == 0 else x[2:])
if rank == 1:
    model[1](x)  # a layer that the other process has never called
print(monitor.report(distributed=True))
assert monitor.state_dict()["0/tokens"].item() == 2 - rank, "the counts themselves stay"
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_report_the_counts_of_all(tmp_path: Path) -> None:
    code = [sys.executable, "-c", PROCESS]
    started = [
        subprocess.Popen([*code, str(rank), str(tmp_path / "meet")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    expected = {"0": exact(0.5, 0.0, 0.0), "1": exact(0.5, 0.0, 0.0)}
    assert [output.strip() for output, _ in outputs] == [str(expected)] * 2
