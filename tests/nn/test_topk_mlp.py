"""Top-k activation and MLP: what is kept, gradients, the two ways of the second layer, and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rlopt.nn.topk_mlp import TopKActivation, TopKMLP, TopKSelection


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@settings(deadline=None, max_examples=60)
@given(values=st.lists(st.integers(-2, 3), min_size=1, max_size=9), data=st.data())
def test_kept_are_the_k_largest_of_a_plain_loop_also_with_ties(values: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    y = TopKActivation(k)(torch.tensor([values], dtype=torch.float64))[0].tolist()
    activations = [max(0.0, float(value)) for value in values]
    assert sorted(y, reverse=True)[:k] == sorted(activations, reverse=True)[:k], "as a set of values, the k largest"
    assert all(kept in (0.0, a) for kept, a in zip(y, activations, strict=True)), "each at its place"
    num_positive = sum(a > 0 for a in activations)
    assert sum(kept != 0 for kept in y) == min(k, num_positive)


def test_k_equal_to_the_width_is_the_base_activation() -> None:
    x = randn(4, 3, 10)
    bases = {"relu": nn.functional.relu, "gelu": nn.functional.gelu, "silu": nn.functional.silu}
    for base, function in bases.items():
        assert torch.equal(TopKActivation(10, base)(x), function(x))  # type: ignore[arg-type]


def test_gradient_is_that_of_the_base_at_kept_places_and_zero_elsewhere() -> None:
    x = randn(6, 12).requires_grad_()
    y = TopKActivation(3)(x)
    weights = randn(6, 12, seed=1)
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    torch.testing.assert_close(gradient, torch.where(y > 0, weights, 0.0), rtol=0, atol=0)
    assert torch.autograd.gradcheck(TopKActivation(3, "silu"), randn(2, 7).requires_grad_())


def test_scattered_form_equals_masked_form_and_ties_keep_exactly_k() -> None:
    x = randn(50, 32)
    a = x.relu()
    kth = a.topk(5, dim=-1).values[..., -1:]
    assert torch.equal(TopKActivation(5)(x), torch.where(a >= kth, a, 0.0))  # without ties the comparison is right
    assert int((TopKActivation(3)(torch.ones(1, 8)) != 0).sum()) == 3  # with ties it would keep all 8
    assert len(set(TopKSelection(3)(torch.ones(1, 8)).indices[0].tolist())) == 3


def test_few_positive_entries_leave_places_empty() -> None:
    assert TopKActivation(3)(torch.tensor([-1.0, 2.0, -3.0, -4.0])).tolist() == [0.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_stays(dtype: torch.dtype) -> None:
    assert TopKActivation(2)(randn(3, 5, dtype=dtype)).dtype == dtype


def test_mlp_equals_plain_loops() -> None:
    mlp = TopKMLP(4, 10, 3).double()
    x = randn(5, 4)
    expected = torch.zeros(5, 4, dtype=torch.float64)
    for token in range(5):
        hidden = [max(0.0, float(x[token] @ mlp.key[:, unit].detach())) for unit in range(10)]
        for unit in sorted(range(10), key=hidden.__getitem__, reverse=True)[:3]:
            expected[token] += hidden[unit] * mlp.value[unit].detach()
    torch.testing.assert_close(mlp(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(6,), (7, 6), (2, 3, 6)])
@pytest.mark.parametrize("base", ["relu", "gelu"])
def test_sparse_and_dense_second_layer_agree_in_values_and_gradients(shape: tuple[int, ...], base: str) -> None:
    dense = TopKMLP(6, 32, 4, base=base)  # type: ignore[arg-type]
    sparse = TopKMLP(6, 32, 4, base=base, sparse_second_matmul=True)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), sparse.parameters(), strict=True))
    found = []
    for mlp in (dense, sparse):
        x = randn(*shape, dtype=torch.float32).requires_grad_()
        y = mlp(x)
        gradients = torch.autograd.grad(y.square().sum(), [x, mlp.key, mlp.value])
        found.append((y, *gradients))
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_state_of_one_form_loads_into_the_other() -> None:
    dense, sparse = TopKMLP(6, 32, 4, seed=1), TopKMLP(6, 32, 4, sparse_second_matmul=True, seed=2)
    sparse.load_state_dict(dense.state_dict())
    x = randn(3, 6, dtype=torch.float32)
    torch.testing.assert_close(dense(x), sparse(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
def test_autocast_runs_and_keeps_the_dtype_of_the_input(sparse: bool) -> None:
    mlp = TopKMLP(8, 32, 4, sparse_second_matmul=sparse)
    x = randn(5, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = mlp(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, mlp(x), rtol=0.1, atol=0.1)


def test_a_token_does_not_depend_on_its_batch() -> None:
    mlp = TopKMLP(8, 64).double()
    x = randn(9, 8)
    torch.testing.assert_close(torch.stack([mlp(row) for row in x]), mlp(x), rtol=1e-12, atol=1e-12)
    order = torch.tensor([3, 1, 4, 0, 8, 2, 6, 5, 7])
    torch.testing.assert_close(mlp(x[order]), mlp(x)[order], rtol=1e-12, atol=1e-12)


def test_training_and_evaluation_are_the_same() -> None:
    mlp = TopKMLP(8, 64)
    x = randn(9, 8, dtype=torch.float32)
    assert torch.equal(mlp.train()(x), mlp.eval()(x))


def test_default_k_is_a_sixteenth() -> None:
    assert [TopKMLP(4, hidden).k for hidden in (64, 40, 8)] == [4, 2, 1]


def test_weights_come_from_the_seed_alone_and_have_the_stated_spread() -> None:
    global_state = torch.get_rng_state()
    first, again, other = TopKMLP(64, 256, seed=3), TopKMLP(64, 256, seed=3), TopKMLP(64, 256, seed=4)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert torch.equal(first.key, again.key)
    assert torch.equal(first.value, again.value)
    assert not torch.equal(first.key, other.key)
    assert first.key.std().item() == pytest.approx(64**-0.5, rel=0.03)
    assert first.value.std().item() == pytest.approx(256**-0.5, rel=0.03)
    # Stable-Baselines3 finds nothing to initialise anew.
    assert not any(isinstance(module, nn.Linear) for module in first.modules())


def test_training_lowers_a_loss() -> None:
    mlp = TopKMLP(6, 64, 8)
    x = randn(64, 6, dtype=torch.float32)
    target = x.roll(1, dims=-1).sin()
    optimizer = torch.optim.Adam(mlp.parameters(), lr=1e-2)
    losses = []
    for _ in range(100):
        loss = nn.functional.mse_loss(mlp(x), target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopKActivation(0), "k must be >= 1, got 0"),
        (lambda: TopKActivation(2, "tanh"), "base must be one of relu, gelu, silu, got 'tanh'"),  # type: ignore[arg-type]
        (lambda: TopKActivation(5)(torch.ones(2, 4)), "k must be at most the last dimension of the input, 4, got 5"),
        (lambda: TopKMLP(0, 4), "width must be >= 1, got 0"),
        (lambda: TopKMLP(4, 0), "hidden_width must be >= 1, got 0"),
        (lambda: TopKMLP(4, 8, 9), r"k must be in \[1, hidden_width = 8\], got 9"),
        (lambda: TopKMLP(4, 8, 0), r"k must be in \[1, hidden_width = 8\], got 0"),
    ],
)
def test_wrong_arguments_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
