"""What to learn from next: replay buffers that drop into Stable-Baselines3 agents.

Every replay takes the arguments of Stable-Baselines3's `ReplayBuffer` plus `n_steps`, `gamma`, `layout`, `memmap_path` and `seed`;
see `rlopt.replay.buffer.Replay`.
"""

from typing import Any, NamedTuple

from rlopt.replay.batch import ReplayBatch
from rlopt.replay.buffer import Replay
from rlopt.replay.combined import CombinedConfig, CombinedReplay
from rlopt.replay.emphasize_recent import EmphasizeRecentConfig, EmphasizeRecentReplay
from rlopt.replay.greedy import GreedyConfig, GreedyReplay
from rlopt.replay.hindsight import HindsightConfig, HindsightReplay
from rlopt.replay.introspective import IntrospectiveConfig, IntrospectiveReplay
from rlopt.replay.prioritized import PrioritizedConfig, PrioritizedReplay
from rlopt.replay.reverse import ReverseConfig, ReverseReplay
from rlopt.replay.sequences import SequenceBatch
from rlopt.replay.uniform import UniformConfig, UniformReplay


class ReplayEntry(NamedTuple):
    """A replay and the frozen dataclass of its options; `dataclasses.asdict` of it are constructor keywords."""

    replay_class: type[Replay]
    config_class: type[Any]


REPLAYS: dict[str, ReplayEntry] = {
    "uniform": ReplayEntry(UniformReplay, UniformConfig),
    "combined": ReplayEntry(CombinedReplay, CombinedConfig),
    "emphasize_recent": ReplayEntry(EmphasizeRecentReplay, EmphasizeRecentConfig),
    "greedy": ReplayEntry(GreedyReplay, GreedyConfig),
    "prioritized": ReplayEntry(PrioritizedReplay, PrioritizedConfig),
    "hindsight": ReplayEntry(HindsightReplay, HindsightConfig),
    "reverse": ReplayEntry(ReverseReplay, ReverseConfig),
    "introspective": ReplayEntry(IntrospectiveReplay, IntrospectiveConfig),
}
"""Name -> replay and options, for scripts."""

__all__ = [
    "REPLAYS",
    "CombinedConfig",
    "CombinedReplay",
    "EmphasizeRecentConfig",
    "EmphasizeRecentReplay",
    "GreedyConfig",
    "GreedyReplay",
    "HindsightConfig",
    "HindsightReplay",
    "IntrospectiveConfig",
    "IntrospectiveReplay",
    "PrioritizedConfig",
    "PrioritizedReplay",
    "Replay",
    "ReplayBatch",
    "ReplayEntry",
    "ReverseConfig",
    "ReverseReplay",
    "SequenceBatch",
    "UniformConfig",
    "UniformReplay",
]
