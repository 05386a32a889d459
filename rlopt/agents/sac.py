"""SAC with any replay."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch as th
from stable_baselines3 import SAC as SB3SAC

from rlopt.agents import losses
from rlopt.agents.auxiliary import plus
from rlopt.agents.fast.sac_learning import FastSAC
from rlopt.agents.finite import checked
from rlopt.agents.off_policy import OffPolicyLearner, weights_of
from rlopt.agents.optimizing import repeatable, take_step, without_recording
from rlopt.agents.td_errors import sac_entropy_coefficient, sac_target

Draw = tuple[th.Tensor, th.Tensor, th.Tensor | None]
"""Actions of the policy, their log-probabilities (B, 1), and the weighed losses that the actor has of its own."""
ENT_COEF_RATE = 3e-4
"""Learning rate of the entropy coefficient if `optimizer` is given: Stable-Baselines3's default."""


class SAC(OffPolicyLearner, SB3SAC):
    """Stable-Baselines3's SAC with rlopt's learning step.

    Critic loss: 0.5 sum_c mean_i w_i (Q_c(s_i, a_i) - y_i)^2 with y = r + discount (1 - done) (min_c Q'_c(s', a') - alpha log
    pi(a' | s')), a' ~ pi(s'). The objectives of actor and entropy coefficient are plain means over the batch. The TD error that
    the replay gets is y - min_c Q_c(s, a).

    Args: As in Stable-Baselines3's SAC; `n_steps` works with every replay of rlopt. `optimizer`: a spec or name of `rlopt.optim`,
    or a function of parameters, for actor and critics, or a mapping with "actor" and "critic" (default: Stable-Baselines3's Adam
    for both); `aux_loss_coefs`: factors of the losses that features extractors have of their own; see
    `rlopt.agents.learner.Learner`. The entropy coefficient stays with Stable-Baselines3's Adam.
    `fast`: whether the learning step is the fast one; see `rlopt.agents.fast`.

    References: Haarnoja et al., Soft actor-critic algorithms and applications, 2018, arXiv 1812.05905.

    Example:
        >>> from rlopt.replay import EmphasizeRecentReplay
        >>> agent = SAC("MlpPolicy", "Pendulum-v1", replay_buffer_class=EmphasizeRecentReplay, batch_size=32, seed=0)
        >>> agent.learn(120).num_timesteps
        120
    """

    _fast: FastSAC | None

    def _make_fast(self) -> FastSAC:
        return FastSAC([self])

    def _build_optimizers(self) -> None:
        super()._build_optimizers()
        if self.ent_coef_optimizer is not None:
            self._own_rates[self.ent_coef_optimizer] = [ENT_COEF_RATE]

    @checked
    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Do `gradient_steps` updates on batches of `batch_size` transitions."""
        if self._fast is not None:
            self._fast.train(gradient_steps, batch_size)
            return
        self._begin_phase(gradient_steps)
        self.policy.set_training_mode(True)
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers += [self.ent_coef_optimizer]
        self._update_learning_rate(optimizers)
        ent_coef_values: list[th.Tensor] = []
        actor_values: list[th.Tensor] = []
        critic_values, ent_coefs = [], []
        for gradient_step in range(gradient_steps):
            self._finite.begin_step()
            batch = self._sample(batch_size)
            draw = repeatable(partial(self._draw_actions, batch), self.actor.optimizer)
            drawn = draw()

            ent_coef = sac_entropy_coefficient(self)
            learned = self._learn_critics(batch, ent_coef)
            if learned is None:
                continue
            critic_loss, errors = learned
            critic_values.append(critic_loss)
            ent_coefs.append(ent_coef)
            self._report(batch, errors)

            # The actor has not moved since: its first evaluation goes on with the actions at hand.
            actor_loss = self._learn_actor(batch, ent_coef, drawn, draw)
            if actor_loss is None:
                continue
            actor_values.append(actor_loss)
            if self.ent_coef_optimizer is not None:
                ent_coef_loss = self._learn_ent_coef(drawn[1])
                ent_coef_values += [] if ent_coef_loss is None else [ent_coef_loss]

            if gradient_step % self.target_update_interval == 0:
                self._update_target()

        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self._record_mean("ent_coef", ent_coefs)
        self._record_mean("actor_loss", actor_values)
        self._record_mean("critic_loss", critic_values)
        self._aux.record(self.logger)
        self._record_mean("ent_coef_loss", ent_coef_values)

    def _learn_critics(self, batch: Any, ent_coef: th.Tensor) -> tuple[th.Tensor, th.Tensor] | None:
        """Take a step of the critics; returns their loss and the TD errors, None if the step was left out."""
        target = sac_target(self, batch, ent_coef)
        evaluate = partial(self._evaluate_critic, batch, target)
        evaluation = take_step(self.critic.optimizer, evaluate, check=self._finite, of="the loss of the critic")
        return None if evaluation is None else (evaluation[0], target - evaluation[1])

    def _learn_actor(self, batch: Any, ent_coef: th.Tensor, drawn: Draw, draw: Callable[[], Draw]) -> th.Tensor | None:
        """Take a step of the actor; returns its loss, None if the step was left out."""
        evaluate = partial(self._evaluate_actor, batch, ent_coef, [drawn], draw)
        evaluation = take_step(self.actor.optimizer, evaluate, check=self._finite, of="the loss of the actor")
        return None if evaluation is None else evaluation[0]

    def _learn_ent_coef(self, log_prob: th.Tensor) -> th.Tensor | None:
        """Take a step of the entropy coefficient; returns its loss, None if the step was left out."""
        assert self.ent_coef_optimizer is not None
        of = "the loss of the entropy coefficient"
        evaluation = take_step(self.ent_coef_optimizer, partial(self._evaluate_ent_coef, log_prob), check=self._finite, of=of)
        return None if evaluation is None else evaluation[0]

    def _update_target(self) -> None:
        losses.soft_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
        losses.soft_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)

    def _draw_actions(self, batch: Any) -> Draw:
        if self.use_sde:
            # log_std may have changed since the last step
            self.actor.reset_noise()
        actions, log_prob = self.actor.action_log_prob(batch.observations)
        return actions, log_prob.reshape(-1, 1), self._aux.pop(self.actor)

    def _evaluate_ent_coef(self, log_prob: th.Tensor) -> tuple[th.Tensor]:
        """Loss of the entropy coefficient."""
        assert self.log_ent_coef is not None
        assert isinstance(self.target_entropy, float)
        return (losses.entropy_coefficient_loss(self.log_ent_coef, log_prob, self.target_entropy),)

    def _evaluate_critic(self, batch: Any, target: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Loss of the critics and their smallest values."""
        critics_q = self.critic(batch.observations, batch.actions)
        loss = 0.5 * losses.squared_loss(critics_q, target, weights_of(batch))
        return plus(loss, self._aux.pop(self.critic)), losses.smallest_value(critics_q)

    def _evaluate_actor(self, batch: Any, ent_coef: th.Tensor, at_hand: list[Draw], draw: Callable[[], Draw]) -> tuple[th.Tensor]:
        """Loss of the actor. The critic only passes gradients on; it records nothing."""
        actions, log_prob, extra = at_hand.pop() if at_hand else draw()
        with without_recording(self.critic.optimizer):
            q = losses.smallest_value(self.critic(batch.observations, actions))
        self._aux.drop(self.critic)
        return (plus((ent_coef * log_prob - q).mean(), extra),)
