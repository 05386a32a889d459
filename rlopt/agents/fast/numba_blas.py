"""Products of matrices in numba, by the fastest float32 `sgemm` that the process has."""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import torch as th
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from scipy.linalg import cython_blas

# Sums may be taken in another order, which lets them use the processor's vectors; nan and infinity stay what they are.
OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}

Function = TypeVar("Function", bound=Callable[..., Any])

# numba keeps compiled functions until their own file changes, but they hold those of other files too: a digest of all in the name
# makes it compile them again when any of these files changes.
_FILES = sorted(Path(__file__).parent.glob("numba_*.py"))
_DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in _FILES)).hexdigest()[:10]


def compiled(function: Function) -> Function:
    """Compile a function for the types that it meets in others."""
    return cast(Function, numba.njit(**OPTIONS)(function))


def kernel(*signature: Any) -> Callable[[Function], Function]:
    """Compile a function for given types of its result and its arguments."""

    def compile_now(function: Function) -> Function:
        function.__qualname__ = f"{function.__qualname__}_{_DIGEST}"
        result, *arguments = signature
        return cast(Function, numba.njit(result(*arguments), **OPTIONS)(function))

    return compile_now


@cache
def sgemm() -> tuple[int, str]:
    """Address of the BLAS routine `sgemm` to use, and whose it is.

    SciPy's OpenBLAS, or on processors of Intel the MKL that torch brings with it, where its library shows it. The choice hangs on
    the processor and what is installed, not on a measurement, so that a run that goes on computes the same.
    """
    if _is_intel():
        library = Path(th.__file__).parent / "lib" / "libtorch_cpu.so"
        try:
            found = ctypes.cast(ctypes.CDLL(str(library)).sgemm_, ctypes.c_void_p).value
        except (OSError, AttributeError):
            found = None
        if found:
            return found, "MKL of torch"
    capsule = cython_blas.__pyx_capi__["sgemm"]
    name_of = ctypes.pythonapi.PyCapsule_GetName
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    address_of = ctypes.pythonapi.PyCapsule_GetPointer
    address_of.restype, address_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return cast(int, address_of(capsule, name_of(capsule))), "BLAS of SciPy"


def _is_intel() -> bool:
    try:
        return sys.platform == "linux" and "GenuineIntel" in Path("/proc/cpuinfo").read_text()[:4000]
    except OSError:
        return False


def _code_of_call(
    typing: Any, address: Any, transposes: Any, m: Any, n: Any, k: Any, a: Any, lda: Any, b: Any, ldb: Any, c: Any, ldc: Any
) -> Any:
    """Code that calls `sgemm` with alpha = 1 and beta = 0; `transposes` is 1 for a, 2 for b; a, b and c are addresses."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, word, real = ir.IntType(8), ir.IntType(32), ir.FloatType()
        pointer = ir.PointerType(byte)

        def place(value: Any) -> Any:
            """Fortran takes all arguments by their addresses."""
            with builder.goto_entry_block():
                memory = builder.alloca(value.type)
            builder.store(value, memory)
            return builder.bitcast(memory, pointer)

        def letter(bit: int) -> Any:
            is_set = builder.icmp_unsigned("!=", builder.and_(which, ir.Constant(which.type, bit)), ir.Constant(which.type, 0))
            return place(builder.select(is_set, ir.Constant(byte, ord("T")), ir.Constant(byte, ord("N"))))

        target, which, *numbers = arguments
        sizes = {
            name: place(builder.trunc(numbers[i], word))
            for name, i in (("m", 0), ("n", 1), ("k", 2), ("lda", 4), ("ldb", 6), ("ldc", 8))
        }
        first, second, out = (builder.inttoptr(numbers[i], pointer) for i in (3, 5, 7))
        one, zero = place(ir.Constant(real, 1.0)), place(ir.Constant(real, 0.0))
        kind = ir.FunctionType(ir.VoidType(), [pointer] * 13)
        routine = builder.inttoptr(target, ir.PointerType(kind))
        builder.call(
            routine,
            [
                letter(1), letter(2), sizes["m"], sizes["n"], sizes["k"], one, first, sizes["lda"], second, sizes["ldb"], zero, out,
                sizes["ldc"],
            ],
        )  # fmt: skip
        return context.get_dummy_value()

    numbers = (types.int64,) * 11
    return types.void(*numbers), generate


_call: Any = intrinsic(_code_of_call)


# sgemm takes columns one behind the other: of our rows it sees the transposed matrices, and computes C' = B' A'.


@compiled
def times_transposed(blas: int, x: Any, w: Any, out: Any) -> None:
    """Write x (B, i) times w' (w is (o, i)) into `out` (B, o)."""
    rows, before, after = x.shape[0], x.shape[1], w.shape[0]
    _call(blas, 1, after, rows, before, w.ctypes.data, before, x.ctypes.data, before, out.ctypes.data, after)


@compiled
def times(blas: int, grad: Any, w: Any, out: Any) -> None:
    """Write grad (B, o) times w (o, i) into `out` (B, i)."""
    rows, after, before = grad.shape[0], grad.shape[1], w.shape[1]
    _call(blas, 0, before, rows, after, w.ctypes.data, before, grad.ctypes.data, after, out.ctypes.data, before)


@compiled
def transposed_times(blas: int, grad: Any, x: Any, out: Any) -> None:
    """Write grad' (grad is (B, o)) times x (B, i) into `out` (o, i)."""
    rows, after, before = grad.shape[0], grad.shape[1], x.shape[1]
    _call(blas, 2, before, after, rows, x.ctypes.data, before, grad.ctypes.data, after, out.ctypes.data, before)
