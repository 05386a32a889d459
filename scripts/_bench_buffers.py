"""Replay buffers of several libraries behind one small interface, for bench_replay.py.

Each adapter adds one transition per call and returns batches as PyTorch tensors on the CPU, as a learning step needs
them; arrays are wrapped without a copy where the library returns arrays.
"""

import ctypes
import subprocess
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray

EPISODE_LENGTH = 200
ALPHA, BETA = 0.6, 0.4  # of all prioritized buffers


@dataclass(frozen=True)
class Transitions:
    """A trajectory that is repeated to fill a buffer.

    The next observation of a step is the observation of the following one. Episodes terminate every `EPISODE_LENGTH`
    steps; their last next observation is not the first one of the next episode.
    """

    observation_space: spaces.Box
    action_space: spaces.Box | spaces.Discrete
    obs: NDArray[Any]  # (P, *obs_shape)
    next_obs: NDArray[Any]  # (P, *obs_shape)
    actions: NDArray[Any]  # (P, action_dim) or (P,)
    rewards: NDArray[np.float32]  # (P,)
    dones: NDArray[np.bool_]  # (P,)

    @classmethod
    def make(cls, case: str, rng: np.random.Generator) -> "Transitions":
        """Return the data of a case, `vector` (17 floats, 6 action floats) or `frames` (84x84x4 bytes, discrete)."""
        observation_space: spaces.Box
        action_space: spaces.Box | spaces.Discrete
        if case == "vector":
            num = 10 * EPISODE_LENGTH
            observation_space, action_space = spaces.Box(-np.inf, np.inf, (17,)), spaces.Box(-1.0, 1.0, (6,))
            path = rng.standard_normal((num + 1, 17), dtype=np.float32)
            actions: NDArray[Any] = rng.uniform(-1.0, 1.0, (num, 6)).astype(np.float32)
        else:
            num = 2 * EPISODE_LENGTH
            # Channels first, as Stable-Baselines3 stores frames; the bytes are the same in the other order.
            observation_space, action_space = spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(6)
            path = rng.integers(0, 256, (num + 1, 4, 84, 84), dtype=np.uint8)
            actions = rng.integers(0, 6, num)
        dones = np.arange(1, num + 1) % EPISODE_LENGTH == 0
        next_obs = path[1:].copy()
        next_obs[dones] = next_obs[dones][:, ::-1]  # a terminal observation of its own
        rewards = rng.standard_normal(num, dtype=np.float32)
        return cls(observation_space, action_space, path[:-1].copy(), next_obs, actions, rewards, dones)

    @property
    def row_nbytes(self) -> int:
        """Bytes of one transition with both observations."""
        return 2 * self.obs[0].nbytes + self.actions[:1].nbytes + 8


class Buffer(ABC):
    """A buffer of some library, filled by `add` and read by `sample`."""

    library: ClassVar[str]
    prioritized: ClassVar[bool] = False

    def __init__(self, data: Transitions, capacity: int) -> None:
        self.data = data
        self.capacity = capacity

    @abstractmethod
    def add(self, i: int) -> None:
        """Add transition i of the data."""

    @abstractmethod
    def sample(self, batch_size: int) -> Any:
        """Return a batch of tensors."""

    def update(self, td_errors: NDArray[np.float32]) -> None:  # noqa: B027 (buffers without priorities ignore it)
        """Report the errors of the last batch."""

    def fill(self) -> None:
        """Add as many transitions as fit."""
        for i in range(self.capacity):
            self.add(i % len(self.data.rewards))


class FloorNumpy(Buffer):
    """Five contiguous arrays, read by `np.take` into arrays that are used again."""

    library = "floor: NumPy take"

    def __init__(self, data: Transitions, capacity: int) -> None:
        super().__init__(data, capacity)
        self.sources = [data.obs, data.next_obs, data.actions, data.rewards, data.dones]
        self.fields = [np.zeros((capacity, *x.shape[1:]), x.dtype) for x in self.sources]
        self.rng = np.random.default_rng(0)
        self.position = 0
        self.batches: dict[int, list[NDArray[Any]]] = {}

    def add(self, i: int) -> None:
        for field, source in zip(self.fields, self.sources, strict=True):
            field[self.position] = source[i]
        self.position = (self.position + 1) % self.capacity

    def batch(self, batch_size: int) -> list[NDArray[Any]]:
        """Return the arrays that a batch of this size is written to."""
        if batch_size not in self.batches:
            self.batches[batch_size] = [np.empty((batch_size, *x.shape[1:]), x.dtype) for x in self.fields]
        return self.batches[batch_size]

    def sample(self, batch_size: int) -> list[th.Tensor]:
        index = self.rng.integers(0, self.capacity, batch_size)
        batch = self.batch(batch_size)
        for field, out in zip(self.fields, batch, strict=True):
            np.take(field, index, axis=0, out=out, mode="clip")
        return [th.from_numpy(out) for out in batch]


class FloorTorch(FloorNumpy):
    """The same arrays, read by `torch.index_select` into tensors that are used again."""

    library = "floor: torch index_select"

    def sample(self, batch_size: int) -> list[th.Tensor]:
        index = th.from_numpy(self.rng.integers(0, self.capacity, batch_size))
        batch = [th.from_numpy(out) for out in self.batch(batch_size)]
        for field, out in zip(self.fields, batch, strict=True):
            th.index_select(th.from_numpy(field), 0, index, out=out)
        return batch


C_SOURCE = r"""
#include <stdint.h>
#include <string.h>
static uint64_t state = 88172645463325252ULL;
static uint64_t next(void) { state ^= state << 13; state ^= state >> 7; state ^= state << 17; return state; }
void gather(long num_fields, char **from, char **to, const long *width, long capacity, long batch, int64_t *index) {
    for (long b = 0; b < batch; b++) index[b] = (int64_t)(((unsigned __int128)next() * capacity) >> 64);
    for (long f = 0; f < num_fields; f++)
        for (long b = 0; b < batch; b++) {
            if (b + 8 < batch) __builtin_prefetch(from[f] + index[b + 8] * width[f]);
            memcpy(to[f] + b * width[f], from[f] + index[b] * width[f], width[f]);
        }
}
"""


class FloorC(FloorNumpy):
    """The same arrays, read by one C function with a generator of its own: what an extension module can reach."""

    library = "floor: one C call"

    def __init__(self, data: Transitions, capacity: int) -> None:
        super().__init__(data, capacity)
        with tempfile.TemporaryDirectory() as folder:
            source, shared = Path(folder, "gather.c"), Path(folder, "gather.so")
            source.write_text(C_SOURCE)
            subprocess.run(["cc", "-O3", "-march=native", "-shared", "-fPIC", "-o", shared, source], check=True)
            self.gather = ctypes.CDLL(str(shared)).gather
        count = len(self.fields)
        self.origin = (ctypes.c_void_p * count)(*[x.ctypes.data for x in self.fields])
        self.width = (ctypes.c_long * count)(*[x[:1].nbytes for x in self.fields])
        self.calls: dict[int, tuple[Any, ...]] = {}

    def sample(self, batch_size: int) -> list[th.Tensor]:
        batch = self.batch(batch_size)
        if batch_size not in self.calls:
            index = np.empty(batch_size, np.int64)
            to = (ctypes.c_void_p * len(batch))(*[x.ctypes.data for x in batch])
            sizes = (ctypes.c_long(self.capacity), ctypes.c_long(batch_size))
            where = (ctypes.c_long(len(batch)), self.origin, to, self.width)
            self.calls[batch_size] = (*where, *sizes, ctypes.c_void_p(index.ctypes.data), index)
        self.gather(*self.calls[batch_size][:-1])
        return [th.from_numpy(out) for out in batch]


class StableBaselines3(Buffer):
    """`stable_baselines3.common.buffers.ReplayBuffer`."""

    library = "Stable-Baselines3"

    def __init__(self, data: Transitions, capacity: int) -> None:
        super().__init__(data, capacity)
        self.buffer = self.make()

    def make(self) -> Any:
        """Construct the library's buffer."""
        from stable_baselines3.common.buffers import ReplayBuffer

        return ReplayBuffer(self.capacity, self.data.observation_space, self.data.action_space, device="cpu")

    def add(self, i: int) -> None:
        d, j = self.data, slice(i, i + 1)
        self.buffer.add(d.obs[j], d.next_obs[j], d.actions[j], d.rewards[j], d.dones[j], [{}])

    def sample(self, batch_size: int) -> Any:
        self.last = self.buffer.sample(batch_size)
        return self.last


class RloptUniform(StableBaselines3):
    """`rlopt.replay.UniformReplay`."""

    library = "rlopt uniform"
    options: ClassVar[dict[str, Any]] = {}

    def make(self) -> Any:
        from rlopt.replay import UniformReplay

        spaces_ = (self.data.observation_space, self.data.action_space)
        return UniformReplay(self.capacity, *spaces_, device="cpu", seed=0, **self.options)


class RloptShared(RloptUniform):
    """`rlopt.replay.UniformReplay` that stores each observation once."""

    library = "rlopt uniform, shared layout"
    options: ClassVar[dict[str, Any]] = {"layout": "shared"}


class RloptReused(RloptUniform):
    """`rlopt.replay.UniformReplay` whose batches are valid until the next one."""

    library = "rlopt uniform, reused memory"
    options: ClassVar[dict[str, Any]] = {"reuse_memory": True}


class RloptPrioritized(StableBaselines3):
    """`rlopt.replay.PrioritizedReplay`."""

    library = "rlopt prioritized"
    prioritized = True
    options: ClassVar[dict[str, Any]] = {}

    def make(self) -> Any:
        from rlopt.replay import PrioritizedReplay

        options = {"alpha": ALPHA, "beta": BETA, "seed": 0, **self.options}
        return PrioritizedReplay(self.capacity, self.data.observation_space, self.data.action_space, device="cpu", **options)

    def update(self, td_errors: NDArray[np.float32]) -> None:
        self.buffer.update(self.last.indices, td_errors)


class RloptPrioritizedReused(RloptPrioritized):
    """`rlopt.replay.PrioritizedReplay` whose batches are valid until the next one."""

    library = "rlopt prioritized, reused memory"
    options: ClassVar[dict[str, Any]] = {"reuse_memory": True}


class RloptRank(RloptPrioritized):
    """`rlopt.replay.PrioritizedReplay`, rank-based."""

    library = "rlopt prioritized, rank"
    options: ClassVar[dict[str, Any]] = {"priority": "rank"}


class Cpprb(Buffer):
    """`cpprb.ReplayBuffer`."""

    library = "cpprb"

    def __init__(self, data: Transitions, capacity: int) -> None:
        super().__init__(data, capacity)
        import cpprb

        observation = {"shape": data.obs.shape[1:], "dtype": data.obs.dtype}
        action = {"shape": data.actions.shape[1:] or 1, "dtype": data.actions.dtype}
        fields = {"obs": observation, "next_obs": observation, "act": action, "rew": {"dtype": np.float32}}
        fields["done"] = {"dtype": np.bool_}
        make = cpprb.PrioritizedReplayBuffer if self.prioritized else cpprb.ReplayBuffer
        self.buffer = make(capacity, fields, **({"alpha": ALPHA} if self.prioritized else {}))

    def add(self, i: int) -> None:
        d = self.data
        self.buffer.add(obs=d.obs[i], next_obs=d.next_obs[i], act=d.actions[i], rew=d.rewards[i], done=d.dones[i])

    def sample(self, batch_size: int) -> dict[str, th.Tensor]:
        self.last = self.buffer.sample(batch_size, BETA) if self.prioritized else self.buffer.sample(batch_size)
        return {name: th.from_numpy(x) for name, x in self.last.items() if name != "indexes"}

    def update(self, td_errors: NDArray[np.float32]) -> None:
        self.buffer.update_priorities(self.last["indexes"], td_errors)


class CpprbPrioritized(Cpprb):
    """`cpprb.PrioritizedReplayBuffer`."""

    library = "cpprb prioritized"
    prioritized = True


class TorchRL(Buffer):
    """`torchrl.data.TensorDictReplayBuffer` with `LazyTensorStorage`."""

    library = "TorchRL"

    def __init__(self, data: Transitions, capacity: int) -> None:
        super().__init__(data, capacity)
        from tensordict import TensorDict
        from torchrl.data import LazyTensorStorage, TensorDictPrioritizedReplayBuffer, TensorDictReplayBuffer

        storage = LazyTensorStorage(capacity)
        if self.prioritized:
            self.buffer = TensorDictPrioritizedReplayBuffer(alpha=ALPHA, beta=BETA, storage=storage, batch_size=32)
        else:
            self.buffer = TensorDictReplayBuffer(storage=storage, batch_size=32)
        fields = {"observation": data.obs, "action": data.actions}
        following = {"observation": data.next_obs, "reward": data.rewards, "done": data.dones}
        tensors = {name: th.from_numpy(x) for name, x in fields.items()}
        nested = {name: th.from_numpy(x) for name, x in following.items()}
        self.transitions = TensorDict({**tensors, "next": nested}, batch_size=[len(data.rewards)])

    def add(self, i: int) -> None:
        self.buffer.add(self.transitions[i])

    def fill(self) -> None:
        for start in range(0, self.capacity, len(self.transitions)):
            self.buffer.extend(self.transitions[: self.capacity - start])

    def sample(self, batch_size: int) -> Any:
        self.last = self.buffer.sample(batch_size)
        return self.last

    def update(self, td_errors: NDArray[np.float32]) -> None:
        self.buffer.update_priority(self.last["index"], th.from_numpy(td_errors))


class TorchRLPrioritized(TorchRL):
    """`torchrl.data.TensorDictPrioritizedReplayBuffer`."""

    library = "TorchRL prioritized"
    prioritized = True


class Tianshou(Buffer):
    """`tianshou.data.ReplayBuffer`."""

    library = "Tianshou"

    def __init__(self, data: Transitions, capacity: int) -> None:
        super().__init__(data, capacity)
        from tianshou.data import Batch

        self.Batch = Batch
        self.buffer = self.make()

    def make(self) -> Any:
        """Construct the library's buffer."""
        from tianshou.data import ReplayBuffer

        return ReplayBuffer(self.capacity)

    def add(self, i: int) -> None:
        d = self.data
        transition = {"obs": d.obs[i], "act": d.actions[i], "rew": d.rewards[i], "obs_next": d.next_obs[i]}
        ends = {"terminated": d.dones[i], "truncated": False, "info": {}}
        self.buffer.add(self.Batch(**transition, **ends))

    def sample(self, batch_size: int) -> list[th.Tensor]:
        batch, self.last_index = self.buffer.sample(batch_size)
        fields = [batch.obs, batch.obs_next, batch.act, batch.rew, batch.terminated]
        if self.prioritized:
            fields.append(batch.weight)
        return [th.from_numpy(np.asarray(x)) for x in fields]

    def update(self, td_errors: NDArray[np.float32]) -> None:
        self.buffer.update_weight(self.last_index, td_errors)


class TianshouPrioritized(Tianshou):
    """`tianshou.data.PrioritizedReplayBuffer`."""

    library = "Tianshou prioritized"
    prioritized = True

    def make(self) -> Any:
        from tianshou.data import PrioritizedReplayBuffer

        return PrioritizedReplayBuffer(self.capacity, alpha=ALPHA, beta=BETA)


class TianshouPrioritizedVector(TianshouPrioritized):
    """`tianshou.data.PrioritizedVectorReplayBuffer` with one environment."""

    library = "Tianshou prioritized, vector buffer"

    def make(self) -> Any:
        from tianshou.data import PrioritizedVectorReplayBuffer

        return PrioritizedVectorReplayBuffer(self.capacity, 1, alpha=ALPHA, beta=BETA)

    def add(self, i: int) -> None:
        d, j = self.data, slice(i, i + 1)
        transition = {"obs": d.obs[j], "act": d.actions[j], "rew": d.rewards[j], "obs_next": d.next_obs[j]}
        ends = {"terminated": d.dones[j], "truncated": np.zeros(1, bool), "info": self.Batch()}
        self.buffer.add(self.Batch(**transition, **ends))


BUFFERS: tuple[type[Buffer], ...] = (
    StableBaselines3,
    RloptUniform,
    RloptReused,
    RloptShared,
    Cpprb,
    TorchRL,
    Tianshou,
    FloorNumpy,
    FloorTorch,
    FloorC,
    RloptPrioritized,
    RloptPrioritizedReused,
    RloptRank,
    CpprbPrioritized,
    TorchRLPrioritized,
    TianshouPrioritized,
    TianshouPrioritizedVector,
)
