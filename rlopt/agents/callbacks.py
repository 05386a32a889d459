"""Callbacks that connect rlopt's parts with stock Stable-Baselines3 agents."""

from __future__ import annotations

from functools import partial

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from rlopt.agents.off_policy import OffPolicyLearner
from rlopt.agents.td_errors import td_error
from rlopt.replay import Replay


class ReplayPhaseCallback(BaseCallback):
    """Announces learning phases to a replay of rlopt inside a stock Stable-Baselines3 agent.

    A stock agent does not tell its buffer when it is going to learn. This callback does, after each rollout, with the TD errors
    under the agent's networks, so that introspective, greedy and emphasizing-recent replay work there as in rlopt's agents.
    Importance weights are beyond its reach: prioritized replay needs an agent of rlopt.

    Example:
        >>> from stable_baselines3 import DQN
        >>> from rlopt.replay import IntrospectiveReplay
        >>> options = dict(replay_buffer_class=IntrospectiveReplay, train_freq=64, gradient_steps=64)
        >>> agent = DQN("MlpPolicy", "CartPole-v1", seed=0, **options)
        >>> _ = agent.learn(256, callback=ReplayPhaseCallback())
        >>> agent.replay_buffer.num_chosen_batches
        192
    """

    def _init_callback(self) -> None:
        if isinstance(self.model, OffPolicyLearner):
            raise ValueError(
                "ReplayPhaseCallback is for stock Stable-Baselines3 agents; rlopt's announce phases themselves: drop it."
            )
        if not isinstance(self.model, OffPolicyAlgorithm) or not isinstance(self.model.replay_buffer, Replay):
            raise ValueError(
                "ReplayPhaseCallback needs an off-policy agent with a replay of rlopt (replay_buffer_class=...), "
                f"got {type(self.model).__name__}."
            )

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        agent = self.model
        assert isinstance(agent, OffPolicyAlgorithm)
        assert isinstance(agent.replay_buffer, Replay)
        if agent.num_timesteps <= agent.learning_starts:
            return  # the agent does not learn yet
        num_steps = agent.gradient_steps
        if num_steps < 0:
            num_steps = self.locals["num_collected_steps"] * agent.n_envs
        if num_steps > 0:
            progress = min(max(1.0 - agent._current_progress_remaining, 0.0), 1.0)
            agent.replay_buffer.begin_phase(num_steps, partial(td_error, agent), progress, agent._vec_normalize_env)
