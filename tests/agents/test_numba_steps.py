"""The learning steps in numba: products by any BLAS, Adam's averages, what is compiled anew, and what a process says about it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numba
import numpy as np
import pytest
import torch as th

from rlopt.agents import SAC
from rlopt.agents.fast import networks, numba_blas, numba_dqn, numba_mlp
from rlopt.agents.fast.adam import AdamRows, FlatAdam, flatten
from rlopt.agents.fast.mlp import StackedMLP
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
from rlopt.agents.fast.mlp import StackedMLP
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
