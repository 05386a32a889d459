"""DQN with any replay."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch as th
from stable_baselines3 import DQN as SB3DQN

from rlopt.agents import losses
from rlopt.agents.auxiliary import plus
from rlopt.agents.fast.dqn_learning import FastDQN
from rlopt.agents.finite import checked
from rlopt.agents.off_policy import OffPolicyLearner, weights_of
from rlopt.agents.optimizing import grad_norm_bound, take_step
from rlopt.agents.td_errors import dqn_target


class DQN(OffPolicyLearner, SB3DQN):
    """Stable-Baselines3's DQN with rlopt's learning step.

    Loss: mean_i w_i huber(Q(s_i, a_i) - y_i) with y = r + discount (1 - done) max_a Q_target(s', a), or with `double_q`
    y = r + discount (1 - done) Q_target(s', argmax_a Q(s', a)).

    Args:
        *args: As in Stable-Baselines3's DQN.
        double_q: Whether the online network chooses the next action.
        **kwargs: As in Stable-Baselines3's DQN; `n_steps` works with every replay of rlopt. `optimizer`: a spec or name of
            `rlopt.optim`, or a function of parameters, for the online network (default: Stable-Baselines3's Adam).
            `aux_loss_coefs`: factors of the losses that a features extractor has of its own. See
            `rlopt.agents.learner.Learner`. `fast`: see `rlopt.agents.off_policy.OffPolicyLearner`.

    Raises:
        ValueError: If options do not go with `optimizer`, `max_grad_norm` with LocoProp or L-BFGS among them: without it, these
            do not clip.

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

    _fast: FastDQN | None

    def _make_fast(self) -> FastDQN:
        return FastDQN([self])

    def _build_optimizers(self) -> None:
        assert self.optimizer is not None
        self.policy.optimizer = self._built(self.optimizer, self.q_net)  # type: ignore[arg-type]  # it refuses mappings
        self.max_grad_norm = grad_norm_bound(self.policy.optimizer, self.max_grad_norm, "max_grad_norm" in self._given)

    @checked
    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Do `gradient_steps` updates on batches of `batch_size` transitions."""
        if self._fast is not None:
            self._fast.train(gradient_steps, batch_size)
            return
        self._begin_phase(gradient_steps)
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        values = []
        for _ in range(gradient_steps):
            self._finite.begin_step()
            batch = self._sample(batch_size)
            target = dqn_target(self, batch)
            evaluate = partial(self._evaluate, batch, target)
            evaluation = take_step(self.policy.optimizer, evaluate, self.max_grad_norm, check=self._finite)
            if evaluation is None:
                continue
            loss, q = evaluation
            self._report(batch, target - q)
            values.append(loss)
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self._record_mean("loss", values)
        self._aux.record(self.logger)

    def _evaluate(self, batch: Any, target: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Loss and Q-values of a batch."""
        q = self.q_net(batch.observations).gather(1, batch.actions.long())
        return plus(losses.huber_loss(q, target, weights_of(batch)), self._aux.pop(self.q_net)), q

    def _on_step(self) -> None:
        self._n_calls += 1
        # One call steps n_envs transitions.
        if self._n_calls % max(self.target_update_interval // self.n_envs, 1) == 0:
            if self._fast is not None:
                self._fast.update_target(self, self.tau)
            else:
                losses.soft_update(self.q_net.parameters(), self.q_net_target.parameters(), self.tau)
            losses.soft_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)
        self.exploration_rate = self.exploration_schedule(self._current_progress_remaining)
        self.logger.record("rollout/exploration_rate", self.exploration_rate)
