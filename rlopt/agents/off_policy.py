"""What rlopt's off-policy agents share: how they make, announce to, report to, save and load their replay."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from rlopt.agents.diagnostics import ReplayDiagnostics
from rlopt.agents.fast.collecting import LeanVecEnv, collect_rollouts
from rlopt.agents.learner import Learner
from rlopt.agents.optimizing import trained_part
from rlopt.agents.sequence_learning import (
    LearnedSteps,
    SequenceLearning,
    StepStore,
    check_networks,
    check_replay,
    counted_steps,
    step_space,
)
from rlopt.agents.td_errors import td_error
from rlopt.replay import HindsightReplay, Replay, UniformReplay


class OffPolicyLearner(Learner, OffPolicyAlgorithm):
    """Mixin that stands before a Stable-Baselines3 agent and connects its learning step with rlopt's replays and optimizers.

    * Without `replay_buffer_class` the replay is `UniformReplay`, for every kind of space.
    * `n_steps` and `gamma` of the agent reach the replay; a replay with another gamma is refused.
    * The replay's generator is spawned from the agent's seed.
    * Buffers that are not rlopt's work as in Stable-Baselines3, without weights and reports.
    * With `sequences` it learns from sequences of steps instead of transitions.
    * With `fast` it learns and acts in the fast form; see `rlopt.agents.fast`.

    Args:
        *args: As in `rlopt.agents.learner.Learner`.
        sequences: See `SequenceLearning`; None: learn from transitions.
        fast: Whether to learn and act in the fast form, for perceptrons on vectors with torch's Adam: the same numbers up to
            rounding, in less time.
        **kwargs: As in `rlopt.agents.learner.Learner`.

    Raises:
        ValueError: As `rlopt.agents.learner.Learner`; with `sequences` if observations are no histories, or for a replay, an
            `n_steps`, a `VecNormalize` or a network that does not go with it. With `fast` if the agent has no such form.
    """

    def __init__(self, *args: Any, sequences: SequenceLearning | None = None, fast: bool = False, **kwargs: Any) -> None:
        self.sequences, self.fast = sequences, fast
        self._fast: Any = None  # the fast form of the learning step
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.fast:
            self._fast = self._make_fast()
            if type(self.env) is DummyVecEnv:
                self.env = LeanVecEnv.of(self.env)
        if self.sequences is not None:
            check_replay(self.replay_buffer, self.n_steps, self._vec_normalize_env)
            check_networks(self.policy, self.sequences)

    def _make_fast(self) -> Any:
        """Return the fast form of the learning step."""
        raise NotImplementedError

    def _collect(self, *args: Any, **kwargs: Any) -> Any:
        if self._fast is None:
            return super()._collect(*args, **kwargs)
        return collect_rollouts(self, *args, **kwargs)

    def _sample_action(self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1) -> Any:
        if self._fast is None or self.num_timesteps < learning_starts:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        return self._noisy(self._fast.explore(np.asarray(self._last_obs)[None], (0,))[0], action_noise)

    def _noisy(self, actions: Any, action_noise: ActionNoise | None) -> tuple[Any, Any]:
        """Actions for the environment and for the replay, of those that a policy chose."""
        if not isinstance(self.action_space, spaces.Box):
            return actions, actions
        if action_noise is not None:
            actions = np.clip(actions + action_noise(), -1, 1)
        return self.policy.unscale_action(actions), actions

    def _build_optimizers(self) -> None:
        """Make the optimizers of an agent with an actor."""
        policy: Any = self.policy
        chosen = self.optimizer
        if not isinstance(chosen, Mapping):
            assert chosen is not None
            chosen = {"actor": chosen, "critic": chosen}
        if set(chosen) != {"actor", "critic"}:
            raise ValueError(f"optimizer must have the keys 'actor' and 'critic' if it is a mapping, got {list(chosen)}.")
        policy.actor.optimizer = self._built(chosen["actor"], policy.actor)
        policy.critic.optimizer = self._built(chosen["critic"], trained_part(policy.critic))

    def _setup_networks(self) -> None:
        self._diagnostics = ReplayDiagnostics()
        if self.replay_buffer_class is None:
            self.replay_buffer_class = UniformReplay
        if not issubclass(self.replay_buffer_class, Replay):
            super()._setup_networks()
            return
        if self.replay_buffer is None:
            self.replay_buffer = self._make_replay(self.replay_buffer_class)
        # Stable-Baselines3 warns that n_steps has no effect with a replay_buffer_class; here it has.
        n_steps, self.n_steps = self.n_steps, 1
        super()._setup_networks()
        self.n_steps = n_steps

    def _make_replay(self, replay_class: type[Replay]) -> Replay:
        options: dict[str, Any] = dict(self.replay_buffer_kwargs)
        gamma = options.setdefault("gamma", self.gamma)
        if gamma != self.gamma:
            raise ValueError(f"replay_buffer_kwargs has gamma={gamma}, the agent gamma={self.gamma}: drop it there.")
        n_steps = options.setdefault("n_steps", self.n_steps)
        if self.n_steps not in (1, n_steps):
            raise ValueError(f"replay_buffer_kwargs has n_steps={n_steps}, the agent n_steps={self.n_steps}: drop it there.")
        if self.seed is not None:
            options.setdefault("seed", np.random.SeedSequence(self.seed, spawn_key=(0,)))
        if issubclass(replay_class, HindsightReplay):
            options.setdefault("env", self.env)
        return replay_class(
            self.buffer_size,
            self.observation_space if self.sequences is None else step_space(self.observation_space),
            self.action_space,
            device=self.device,
            n_envs=self.n_envs,
            optimize_memory_usage=self.optimize_memory_usage,
            **options,
        )

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Change the environment; a hindsight replay computes its rewards with the new one."""
        super().set_env(env, force_reset)
        if isinstance(self.replay_buffer, HindsightReplay) and self.env is not None:
            self.replay_buffer.set_env(self.env)

    def _begin_phase(self, gradient_steps: int) -> None:
        """Tell the replay that `gradient_steps` draws follow."""
        if isinstance(self.replay_buffer, Replay):
            # Scores are those of the acting networks: dropout and batch statistics off.
            if self._fast is None:  # perceptrons are the same in training
                self.policy.set_training_mode(False)
            self.replay_buffer.begin_phase(
                gradient_steps,
                partial(td_error, self),
                progress=min(max(1.0 - self._current_progress_remaining, 0.0), 1.0),
                env=self._vec_normalize_env,
            )

    def _store_transition(self, replay_buffer: Any, *args: Any, **kwargs: Any) -> None:
        if self.sequences is not None:
            replay_buffer = StepStore(replay_buffer)
        super()._store_transition(replay_buffer, *args, **kwargs)

    def _sample(self, batch_size: int) -> Any:
        """Draw what the next update learns from: a batch of transitions."""
        replay: Any = self.replay_buffer
        if self.sequences is None:
            return replay.sample(batch_size, env=self._vec_normalize_env)
        chosen = self.sequences
        return counted_steps(
            replay.sample_sequences(
                batch_size, chosen.length, chosen.burn_in, env=self._vec_normalize_env, pivot_at=chosen.pivot_at
            )
        )

    def _report(self, batch: Any, td_errors: th.Tensor) -> None:
        """Give the replay the TD errors of a batch that was just learned from."""
        if isinstance(batch, LearnedSteps):
            batch, td_errors = batch.sequences, batch.of_pivots(td_errors)
        if isinstance(self.replay_buffer, Replay):
            self.replay_buffer.update(batch.indices, td_errors)
            self._diagnostics.note(self.replay_buffer, batch, td_errors)

    def dump_logs(self) -> None:
        """Write the log data, with statistics of the replay."""
        if isinstance(self.replay_buffer, Replay):
            for name, value in self._diagnostics.report(self.replay_buffer).items():
                self.logger.record(f"replay/{name}", value)
        super().dump_logs()

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """Save the replay, in rlopt's format without pickle if it is rlopt's, whatever the name of the file."""
        if not isinstance(self.replay_buffer, Replay) or isinstance(path, io.BufferedIOBase):
            super().save_replay_buffer(path)
        else:
            self.replay_buffer.save(path)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """Load what `save_replay_buffer` wrote.

        Args:
            path: The file.
            truncate_last_traj: For Stable-Baselines3's own buffers. rlopt's need no choice: an episode that is not continued
                ends where it stopped.

        Raises:
            ValueError: If the file is missing, damaged, foreign, or of a replay with other options.
        """
        if not isinstance(self.replay_buffer, Replay) or isinstance(path, io.BufferedIOBase):
            super().load_replay_buffer(path, truncate_last_traj)
        else:
            self.replay_buffer.load(path)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_diagnostics", "_fast"]


def weights_of(batch: Any) -> th.Tensor | None:
    """Importance weights of a batch, None for buffers that have none."""
    return getattr(batch, "weights", None)
