"""TD3 with any replay."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch as th
from stable_baselines3 import TD3 as SB3TD3

from rlopt.agents import losses
from rlopt.agents.auxiliary import plus
from rlopt.agents.fast.td3_learning import FastTD3
from rlopt.agents.finite import checked
from rlopt.agents.off_policy import OffPolicyLearner, weights_of
from rlopt.agents.optimizing import take_step, without_recording
from rlopt.agents.td_errors import td3_target


class TD3(OffPolicyLearner, SB3TD3):
    """Stable-Baselines3's TD3 with rlopt's learning step.

    Critic loss: sum_c mean_i w_i (Q_c(s_i, a_i) - y_i)^2 with y = r + discount (1 - done) min_c Q'_c(s', clip(pi'(s') +
    noise)). The actor's objective is the plain mean over the batch: weights correct the regression, not the choice of states.
    The TD error that the replay gets is y - min_c Q_c(s, a).

    Args: As in Stable-Baselines3's TD3; `n_steps` works with every replay of rlopt. `optimizer`: a spec or name of `rlopt.optim`,
    or a function of parameters, for actor and critics, or a mapping with "actor" and "critic" (default: Stable-Baselines3's Adam
    for both); `aux_loss_coefs`: factors of the losses that features extractors have of their own; see
    `rlopt.agents.learner.Learner`. `fast`: whether the learning step is the fast one; see `rlopt.agents.fast`.

    References: Fujimoto et al., Addressing function approximation error in actor-critic methods, ICML 2018, arXiv 1802.09477.

    Example:
        >>> from rlopt.replay import ReverseReplay
        >>> agent = TD3("MlpPolicy", "Pendulum-v1", replay_buffer_class=ReverseReplay, batch_size=32, seed=0)
        >>> agent.learn(120).num_timesteps
        120
    """

    _fast: FastTD3 | None

    def _make_fast(self) -> FastTD3:
        return FastTD3([self])

    @checked
    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Do `gradient_steps` updates on batches of `batch_size` transitions."""
        if self._fast is not None:
            self._fast.train(gradient_steps, batch_size)
            return
        self._begin_phase(gradient_steps)
        self.policy.set_training_mode(True)
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])
        actor_values: list[th.Tensor] = []
        critic_values: list[th.Tensor] = []
        for _ in range(gradient_steps):
            self._n_updates += 1
            self._finite.begin_step()
            batch = self._sample(batch_size)
            learned = self._learn_critics(batch)
            if learned is None:
                continue
            critic_loss, errors = learned
            critic_values.append(critic_loss)
            self._report(batch, errors)

            if self._n_updates % self.policy_delay == 0:
                actor_loss = self._learn_actor(batch)
                if actor_loss is None:
                    continue
                actor_values.append(actor_loss)
                self._update_targets()

        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self._record_mean("actor_loss", actor_values)
        self._record_mean("critic_loss", critic_values)
        self._aux.record(self.logger)

    def _learn_critics(self, batch: Any) -> tuple[th.Tensor, th.Tensor] | None:
        """Take a step of the critics; returns their loss and the TD errors, None if the step was left out."""
        target = td3_target(self, batch)
        evaluate = partial(self._evaluate_critic, batch, target)
        evaluation = take_step(self.critic.optimizer, evaluate, check=self._finite, of="the loss of the critic")
        return None if evaluation is None else (evaluation[0], target - evaluation[1])

    def _learn_actor(self, batch: Any) -> th.Tensor | None:
        """Take a step of the actor; returns its loss, None if the step was left out."""
        evaluate = partial(self._evaluate_actor, batch)
        evaluation = take_step(self.actor.optimizer, evaluate, check=self._finite, of="the loss of the actor")
        return None if evaluation is None else evaluation[0]

    def _update_targets(self) -> None:
        losses.soft_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
        losses.soft_update(self.actor.parameters(), self.actor_target.parameters(), self.tau)
        losses.soft_update(self.critic_batch_norm_stats, self.critic_batch_norm_stats_target, 1.0)
        losses.soft_update(self.actor_batch_norm_stats, self.actor_batch_norm_stats_target, 1.0)

    def _evaluate_critic(self, batch: Any, target: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Loss of the critics and their smallest values."""
        critics_q = self.critic(batch.observations, batch.actions)
        loss = losses.squared_loss(critics_q, target, weights_of(batch))
        return plus(loss, self._aux.pop(self.critic)), losses.smallest_value(critics_q)

    def _evaluate_actor(self, batch: Any) -> tuple[th.Tensor]:
        """Loss of the actor. The critic only passes gradients on; it records nothing."""
        actions = self.actor(batch.observations)
        extra = self._aux.pop(self.actor)  # before the critic, which may have the same features extractor
        with without_recording(self.critic.optimizer):
            loss = -self.critic.q1_forward(batch.observations, actions).mean()
        return (plus(loss, extra),)
