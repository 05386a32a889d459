"""DQN with any replay."""

from __future__ import annotations

from typing import Any

import torch as th
from stable_baselines3 import DQN as SB3DQN

from rlopt.agents import losses
from rlopt.agents.off_policy import OffPolicyLearner, mean_of, weights_of
from rlopt.agents.td_errors import dqn_target


class DQN(OffPolicyLearner, SB3DQN):
    """Stable-Baselines3's DQN with rlopt's learning step.

    Loss: mean_i w_i huber(Q(s_i, a_i) - y_i) with y = r + discount (1 - done) max_a Q_target(s', a), or with `double_q`
    y = r + discount (1 - done) Q_target(s', argmax_a Q(s', a)).

    Args:
        *args: As in Stable-Baselines3's DQN.
        double_q: Whether the online network chooses the next action.
        **kwargs: As in Stable-Baselines3's DQN; `n_steps` works with every replay of rlopt.

    References: Mnih et al., Human-level control through deep reinforcement learning, Nature 2015; van Hasselt et al., Deep
    reinforcement learning with double Q-learning, AAAI 2016, arXiv 1509.06461.

    Example:
        >>> from rlopt.replay import IntrospectiveReplay
        >>> phases = dict(train_freq=64, gradient_steps=64)
        >>> agent = DQN("MlpPolicy", "CartPole-v1", replay_buffer_class=IntrospectiveReplay, seed=0, **phases)
        >>> agent.learn(256).num_timesteps
        256
    """

    def __init__(self, *args: Any, double_q: bool = False, **kwargs: Any) -> None:
        self.double_q = double_q
        super().__init__(*args, **kwargs)

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Do `gradient_steps` updates on batches of `batch_size` transitions."""
        assert self.replay_buffer is not None
        self._begin_phase(gradient_steps)
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        values = []
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            target = dqn_target(self, batch)
            q = self.q_net(batch.observations).gather(1, batch.actions.long())
            loss = losses.huber_loss(q, target, weights_of(batch))
            self.policy.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
            self._report(batch, (target - q).detach())
            values.append(loss.detach())
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", mean_of(values))

    def _on_step(self) -> None:
        self._n_calls += 1
        # One call steps n_envs transitions.
        if self._n_calls % max(self.target_update_interval // self.n_envs, 1) == 0:
            losses.soft_update(self.q_net.parameters(), self.q_net_target.parameters(), self.tau)
            losses.soft_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)
        self.exploration_rate = self.exploration_schedule(self._current_progress_remaining)
        self.logger.record("rollout/exploration_rate", self.exploration_rate)
