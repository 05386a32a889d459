"""Off-policy learning from sequences: a replay of single steps, and networks that see each step with those before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast, get_args

import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from rlopt.replay.buffer import Replay
from rlopt.replay.sequences import PivotPlace, SequenceBatch


@dataclass(frozen=True)
class SequenceLearning:
    """Option `sequences` of DQN, DDPG, TD3 and SAC: learn from all steps of sequences, each seen with the steps before it.

    The environment shows histories (`HistoryWrapper` or `VecHistory`), and agents act on them as they would without this option.
    But the replay stores single steps, which takes less memory by the length of the histories, and a batch is `batch_size`
    sequences of `burn_in + length` steps, never across episodes. One pass of a causal network (`TransformerExtractor`) gives the
    features of all these steps; the loss is the mean over the last `length`, of sequences that have so many.

    With `burn_in + length` equal to the length of the histories, agents act on as long a past as they have learned from. The step
    after the last one is looked at as well, so the transformer's context must be one longer. In the middle of an episode the first
    step of a sequence has lost its past, so that features of early steps differ from those that the agent acted on; `burn_in`
    leaves them out.

    Example:
        >>> import rlopt_envs  # registers the environment
        >>> from gymnasium import make
        >>> from rlopt.agents import DQN, HistoryWrapper, TransformerExtractor
        >>> from rlopt.nn import TransformerConfig
        >>> env = HistoryWrapper(make("rlopt/TMaze-v0", corridor_length=4), length=6)
        >>> transformer = TransformerConfig(width=16, num_layers=1, num_heads=2, context=7, positions="rotary")
        >>> network = dict(features_extractor_class=TransformerExtractor, features_extractor_kwargs=dict(transformer=transformer))
        >>> options = dict(policy_kwargs=network, batch_size=8, learning_starts=50, seed=0)
        >>> agent = DQN("MultiInputPolicy", env, sequences=SequenceLearning(length=6), **options)
        >>> agent.learn(100).num_timesteps
        100

    References: Hausknecht and Stone, Deep recurrent Q-learning for partially observable MDPs, 2015, arXiv 1507.06527; Kapturowski
    et al., Recurrent experience replay in distributed reinforcement learning, ICLR 2019 (burn-in).
    """

    length: int = 8
    """Steps of a sequence that the loss counts, > 0."""
    burn_in: int = 0
    """Steps before them that are only looked at, >= 0."""
    pivot_at: PivotPlace = "random"
    """Where the drawn transition lies among the counted ones, see `rlopt.replay.Replay.sample_sequences`."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.length < 1:
            raise ValueError(f"length must be > 0, got {self.length}.")
        if self.burn_in < 0:
            raise ValueError(f"burn_in must be >= 0, got {self.burn_in}.")
        if self.pivot_at not in get_args(PivotPlace):
            raise ValueError(f"pivot_at must be 'random' or 'end', got {self.pivot_at!r}.")

    @property
    def num_steps(self) -> int:
        """Steps that networks see at once: those of a sequence and the one after it."""
        return self.burn_in + self.length + 1


class LearnedSteps(NamedTuple):
    """The steps that a loss counts, as a batch of transitions: the fields of `rlopt.replay.ReplayBatch`, and the sequences.

    There are N counted steps in B sequences of T steps. Both observations are the same T + 1 steps; their `valid` has two channels
    (B, T + 1, 2): which steps there are, and of which the features are wanted, N of them in the order of the other fields.
    """

    observations: dict[str, th.Tensor]
    actions: th.Tensor
    next_observations: dict[str, th.Tensor]
    dones: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor | None
    weights: th.Tensor
    sequences: SequenceBatch

    def of_pivots(self, values: th.Tensor) -> th.Tensor:
        """Of values (N, 1) of all counted steps, those of the drawn transitions, (B,)."""
        learn = self.sequences.learn
        full = values.new_zeros(learn.shape)  # (B, T)
        full[learn] = values.reshape(-1)
        return self.sequences.at_pivots(full)


def counted_steps(sequences: SequenceBatch) -> LearnedSteps:
    """Turn sequences of single steps into a batch of the steps that a loss counts.

    As a sequence stays in one episode, the step after each is the next one of the sequence, so one row of T + 1 steps serves for
    observations and next observations.
    """
    observations = cast(dict[str, th.Tensor], sequences.observations)
    next_observations = cast(dict[str, th.Tensor], sequences.next_observations)
    steps = {name: th.cat([part, next_observations[name][:, -1:]], dim=1) for name, part in observations.items()}  # (B, T + 1, ...)
    learn = sequences.learn
    no, yes = th.zeros_like(learn[:, :1]), th.ones_like(learn[:, :1])
    there = th.cat([sequences.valid, yes], dim=1)  # (B, T + 1)

    def seen(*wanted: th.Tensor) -> dict[str, th.Tensor]:
        return {**steps, "valid": th.stack([there, th.cat(wanted, dim=1)], dim=-1).to(th.int8)}

    return LearnedSteps(
        observations=seen(learn, no),
        actions=sequences.actions[learn],  # (B, T, ...) -> (N, ...), and the same below
        next_observations=seen(no, learn),
        dones=sequences.dones[learn],
        rewards=sequences.rewards[learn],
        discounts=None if sequences.discounts is None else sequences.discounts[learn],
        weights=sequences.weights[learn],
        sequences=sequences,
    )


def step_space(space: spaces.Space[Any]) -> spaces.Dict:
    """Space of a single step of histories.

    Raises:
        ValueError: If the observations are no histories.
    """
    if not isinstance(space, spaces.Dict) or not {"observations", "valid"} <= space.spaces.keys():
        raise ValueError(f"sequences needs observations of a HistoryWrapper or VecHistory, got {space}: wrap the environment.")
    boxes = {name: cast(spaces.Box, part) for name, part in space.spaces.items() if name != "valid"}
    return spaces.Dict({name: spaces.Box(box.low[-1], box.high[-1], box.shape[1:], box.dtype.type) for name, box in boxes.items()})


class StepStore:
    """Stands before a replay of single steps and takes transitions between histories: keeps the newest step of each."""

    def __init__(self, replay: Any) -> None:
        self._replay = replay

    def add(self, obs: Mapping[str, NDArray[Any]], next_obs: Mapping[str, NDArray[Any]], *rest: Any) -> None:
        """Add transitions of all environments, as `Replay.add`."""
        newest = ({name: part[:, -1] for name, part in histories.items() if name != "valid"} for histories in (obs, next_obs))
        self._replay.add(*newest, *rest)


def check_replay(replay: Any, n_steps: int, vec_normalize: Any) -> None:
    """Refuse a replay, and what normalises what it holds, that does not go with sequences.

    Raises:
        ValueError: If the replay is not rlopt's or chooses among TD errors of stored transitions, for `n_steps` other than 1, or if
            observations are normalised by `VecNormalize`.
    """
    if not isinstance(replay, Replay):
        raise ValueError(f"sequences needs a replay of rlopt, got {type(replay).__name__}: take another replay_buffer_class.")
    if replay.sampler.needs_phase:
        raise ValueError(
            f"sequences does not go with {type(replay).__name__}, which ranks single transitions by the networks: take uniform, "
            "prioritized or reverse replay."
        )
    if n_steps != 1 or replay.n_steps != 1:
        raise ValueError(f"n_steps must be 1 with sequences, got {max(n_steps, replay.n_steps)}.")
    if vec_normalize is not None and vec_normalize.norm_obs:
        raise ValueError("VecNormalize must have norm_obs=False with sequences: normalise in front of the HistoryWrapper.")


def check_networks(policy: nn.Module, sequences: SequenceLearning) -> None:
    """Refuse networks that cannot give the features of all steps of a sequence in one pass.

    A features extractor that can has a method `check_sequences(num_steps)`, which raises a `ValueError` if it is set up
    otherwise. Its `forward` then takes histories of at most `num_steps` steps whose `valid` is (B, L, 2), see `LearnedSteps`, and
    returns the features of the wanted steps, (N, features_dim).

    Raises:
        ValueError: If an extractor of the policy has no such method, or by it.
    """
    for module in policy.modules():
        if isinstance(module, BaseFeaturesExtractor):
            check = getattr(module, "check_sequences", None)
            if check is None:
                raise ValueError(
                    f"sequences needs a features extractor with a method check_sequences, such as TransformerExtractor, got "
                    f"{type(module).__name__}."
                )
            check(sequences.num_steps)
