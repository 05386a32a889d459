"""The learning steps in numba: products by any BLAS, Adam's averages, what is compiled anew, and what a process says about it."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import pytest
import torch as th

from rlopt.agents import SAC
from rlopt.agents.fast import compiled, networks, numba_blas, numba_dqn, numba_mlp
from rlopt.agents.fast.adam import AdamRows, FlatAdam, flatten
from rlopt.agents.fast.dqn import DQNGradient
from rlopt.agents.fast.mlp import StackedMLP
from rlopt.agents.fast.sac import SACGradient, SquashedGaussian
from rlopt.agents.fast.td3 import TD3Gradient, TwinCritics
from tests.agents.fast_agents import continuous, discrete


@numba.njit
def three_products(blas: int, x: Any, w: Any, grad: Any, outs: Any) -> None:
    numba_blas.times_transposed(blas, x, w, outs[0])
    numba_blas.times(blas, grad, w, outs[1])
    numba_blas.transposed_times(blas, grad, x, outs[2])


@pytest.fixture(params=["as on this machine", "of SciPy"])
def sgemm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    numba_blas.sgemm.cache_clear()
    if request.param == "of SciPy":
        monkeypatch.setattr(numba_blas, "_is_intel", lambda: False)
        assert numba_blas.sgemm()[1] == "BLAS of SciPy"
    yield numba_blas.sgemm()[0]
    numba_blas.sgemm.cache_clear()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (64, 4, 64), (13, 17, 1), (32, 40, 24)])
def test_products_are_numpys(sgemm: int, shape: tuple[int, int, int]) -> None:
    rows, before, after = shape
    rng = np.random.default_rng(0)
    x, w, grad = (rng.standard_normal(size).astype(np.float32) for size in ((rows, before), (after, before), (rows, after)))
    outs = tuple(np.full(size, np.nan, np.float32) for size in ((rows, after), (rows, before), (after, before)))
    three_products(sgemm, x, w, grad, outs)
    for out, wanted in zip(outs, (x @ w.T, grad @ w, grad.T @ x), strict=True):
        np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)


def test_library_that_shows_no_sgemm_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    numba_blas.sgemm.cache_clear()
    monkeypatch.setattr(numba_blas, "_is_intel", lambda: True)
    monkeypatch.setattr(numba_blas.th, "__file__", "/nowhere/torch/__init__.py")
    assert numba_blas.sgemm()[1] == "BLAS of SciPy"
    numba_blas.sgemm.cache_clear()


def test_averages_below_the_normal_range_become_zero_and_no_parameter_notices() -> None:
    th.manual_seed(0)
    params = [th.nn.Parameter(th.randn(50)), th.nn.Parameter(th.randn(50))]
    twin = [th.nn.Parameter(parameter.detach().clone()) for parameter in params]
    plain = th.optim.Adam(twin, lr=1e-2)
    flat = flatten([params])
    rows = AdamRows(flat, th.zeros_like(flat), 2)
    fast = FlatAdam(params, params, rows, lr=1e-2)
    array = flat.numpy()
    subnormal = 0
    for step in range(1500):  # 0.9^1500 is far below the smallest number of float32
        for parameter, other in zip(params, twin, strict=True):
            parameter.grad.copy_(th.randn(50) if step == 0 else th.zeros(50))  # type: ignore[union-attr]
            other.grad = parameter.grad.clone()  # type: ignore[union-attr]
        plain.step()
        grads, exp_avg, exp_avg_sq, steps, *options = rows.arguments(fast.param_groups[0])
        numba_mlp.adam(array[0], grads[0], exp_avg[0], exp_avg_sq[0], steps[0], *options)
        subnormal += np.count_nonzero((np.abs(exp_avg) < 1.2e-38) & (exp_avg != 0.0))
    assert subnormal == 0
    assert not exp_avg.any()
    assert any(0 < abs(number) < 1.2e-38 for parameter in twin for number in plain.state[parameter]["exp_avg"].tolist())
    np.testing.assert_allclose(th.cat([p.detach() for p in params]), th.cat([p.detach() for p in twin]), rtol=1e-5, atol=1e-6)


def test_nan_in_a_hidden_unit_is_seen() -> None:
    mlp = StackedMLP([2, 3, 1])
    mlp.params.normal_()
    mlp.params[0, 0] = th.nan
    assert np.isnan(networks.acting(mlp)(np.ones((1, 1, 2), np.float32))).all()


def test_changed_files_are_compiled_anew() -> None:
    # numba looks at the file of a function only, and kernels hold functions of other files.
    name = numba_dqn.learn.py_func.__qualname__  # type: ignore[attr-defined]
    assert name == f"learn_{numba_blas._DIGEST}"
    assert {path.name for path in numba_blas._FILES} >= {"numba_mlp.py", "numba_critics.py", "numba_td3.py", "numba_sac.py"}


def test_log_tells_what_computes_the_step() -> None:
    assert discrete(fast=True)._fast.description in ("numba, products by MKL of torch", "numba, products by BLAS of SciPy")
    assert continuous(SAC, fast=True, policy_kwargs={"activation_fn": th.nn.Tanh})._fast.description == "torch on cpu"


def test_process_that_compiles_says_so() -> None:
    code = """
import sys, time
from rlopt.agents.fast import networks
from rlopt.agents.fast.dqn import DQNGradient
from rlopt.agents.fast.mlp import StackedMLP
from rlopt.agents.fast.sac import SACGradient, SquashedGaussian
from rlopt.agents.fast.td3 import TD3Gradient, TwinCritics
def slow(name):
    time.sleep(1.0)
    sys.modules[name] = sys
networks.importlib.import_module = slow
networks.PATIENCE = 0.2
networks.compiled_for([StackedMLP([1, 1])])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stderr.strip().splitlines()[-2:]
    assert first == "fast=True: compiling the learning steps for this processor; later processes find them on disk."
    assert second.startswith("fast=True: compiled in ")


def random_batch(num: int, rows: int, size: int, actions: th.Tensor) -> SimpleNamespace:
    shape = (num, rows, 1)
    return SimpleNamespace(
        observations=th.randn(num, rows, size), actions=actions, next_observations=th.randn(num, rows, size),
        rewards=3 * th.randn(shape), dones=(th.rand(shape) < 0.3).float(), discounts=th.rand(shape), weights=th.rand(shape),
    )  # fmt: skip


def rows_for(params: th.Tensor) -> tuple[AdamRows, tuple[Any, ...]]:
    rows = AdamRows(params, th.zeros_like(params), 1)
    return rows, rows.arguments({"maximize": False, "lr": 0.0, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0})


@pytest.mark.parametrize("double_q", [False, True])
def test_dqns_gradients_are_those_of_torch(double_q: bool) -> None:
    th.manual_seed(0)
    online, target = (StackedMLP([4, 6, 3], 3, "relu", th.randn(3, 51)) for _ in range(2))
    batch = random_batch(3, 16, 4, th.randint(0, 3, (3, 16, 1)))
    gradient = DQNGradient(online, target, 0.9, double_q, 0.3)
    losses, errors = gradient(batch)
    rows, adam = rows_for(online.params)
    arrays = compiled.Arrays(*(getattr(batch, name).numpy() for name in compiled.Arrays._fields))
    learned = compiled.CompiledDQN(online, target, double_q, 0.3).learn(np.ones(3, bool), arrays, adam)
    for found, wanted in ((learned.losses, losses), (learned.errors, errors), (rows.grads, gradient.grads)):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_sacs_and_td3s_gradients_are_those_of_torch() -> None:
    th.manual_seed(0)
    num, size, num_actions = 3, 4, 2
    policy = StackedMLP([size, 6, 2 * num_actions], num, "relu", 0.3 * th.randn(num, 58))
    policy.params[:, -1] = -20.0  # the bias of one deviation, some of which are out of their range then
    critics, critics_target = (TwinCritics(th.randn(num, 2 * 49), [6, 6, 1], "relu", 2) for _ in range(2))
    batch = random_batch(num, 32, size, th.rand(num, 32, num_actions) * 2 - 1)
    noise, next_noise, ent_coefs = th.randn(num, 32, 2), th.randn(num, 32, 2), th.rand(num)
    raw = policy.forward(batch.observations)[..., num_actions:]
    assert 0 < (raw < -20.0).sum() < 3 * 32
    arrays = compiled.Arrays(*(getattr(batch, name).numpy() for name in compiled.Arrays._fields))
    active = np.ones(num, bool)

    gaussian = SquashedGaussian(policy)
    sac = SACGradient(gaussian, critics, critics_target, 0.9)
    actions, log_probs = gaussian.sample(batch.observations, noise)
    wanted = [
        actions.clone(),
        log_probs.clone(),
        *(part.clone() for part in sac.of_critics(batch, ent_coefs.view(-1, 1, 1), next_noise)),
    ]
    wanted += [sac.critic_grads, sac.of_actor(batch, ent_coefs.view(-1, 1, 1), actions, log_probs), sac.actor_grads]
    step = compiled.CompiledSAC(gaussian, critics, critics_target)
    drawn = step.draw(active, arrays, noise.numpy())
    (critic_rows, critic_adam), (actor_rows, actor_adam) = rows_for(critics.params), rows_for(policy.params)
    of_critics = step.learn_critics(active, arrays, next_noise.numpy(), ent_coefs.numpy(), critic_adam)
    of_actor = step.learn_actor(active, arrays, drawn, ent_coefs.numpy(), actor_adam)
    found = [
        drawn.actions,
        drawn.log_probs,
        of_critics.losses,
        of_critics.errors,
        critic_rows.grads,
        of_actor.losses,
        actor_rows.grads,
    ]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)

    actor, actor_target = (StackedMLP([size, 6, num_actions], num, "relu", th.randn(num, 44)) for _ in range(2))
    td3 = TD3Gradient(actor, actor_target, critics, critics_target, 0.9)
    wanted = [*(part.clone() for part in td3.of_critics(batch, noise)), td3.critic_grads, td3.of_actor(batch), td3.actor_grads]
    other_step = compiled.CompiledTD3(actor, actor_target, critics, critics_target)
    actor_rows, actor_adam = rows_for(actor.params)
    of_critics = other_step.learn_critics(active, arrays, noise.numpy(), critic_adam)
    of_actor = other_step.learn_actor(active, arrays, actor_adam)
    found = [of_critics.losses, of_critics.errors, critic_rows.grads, of_actor.losses, actor_rows.grads]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
