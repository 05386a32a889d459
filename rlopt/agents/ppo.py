"""PPO with any optimizer, and with the losses that networks have of their own."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.utils import explained_variance

from rlopt.agents import losses
from rlopt.agents.auxiliary import plus
from rlopt.agents.finite import checked
from rlopt.agents.learner import Learner
from rlopt.agents.optimizing import Evaluation, grad_norm_bound, take_step

AnyPPO = TypeVar("AnyPPO", bound="PPO")

LOGGED = ("loss", "policy_gradient_loss", "value_loss", "entropy_loss", "clip_fraction", "approx_kl")
"""Names in the log of what an evaluation returns."""


class PPO(Learner, SB3PPO):
    """Stable-Baselines3's PPO with rlopt's learning step.

    Loss of a batch: L_clip + vf_coef L_value + ent_coef L_entropy, each a pure function of `rlopt.agents.losses`, plus the losses
    that features extractors have of their own, times `aux_loss_coefs`. With `target_kl` the update stops in front of the first
    step whose batch has an approximate KL divergence from the old policy above 1.5 target_kl.

    Given the same random numbers, parameters are those of Stable-Baselines3 to the last bit.

    Args:
        *args: As in Stable-Baselines3's PPO.
        **kwargs: As in Stable-Baselines3's PPO. `optimizer`: a spec or name of `rlopt.optim`, or a function of parameters, for the
            policy (default: Stable-Baselines3's Adam with eps 1e-5). `aux_loss_coefs`: factors of the losses that a features
            extractor has of its own. See `rlopt.agents.learner.Learner`.

    Raises:
        ValueError: If options do not go with `optimizer`, `max_grad_norm` with LocoProp or L-BFGS among them: without it, these
            do not clip.

    References: Schulman et al., Proximal policy optimization algorithms, 2017, arXiv 1707.06347.

    Example:
        >>> from rlopt.optim import Muon
        >>> agent = PPO("MlpPolicy", "CartPole-v1", n_steps=64, n_epochs=2, optimizer=Muon(), seed=0, device="cpu")
        >>> agent.learn(128).num_timesteps
        128
    """

    def _build_optimizers(self) -> None:
        assert self.optimizer is not None
        self.policy.optimizer = self._built(self.optimizer, self.policy)  # type: ignore[arg-type]  # it refuses mappings
        self.max_grad_norm = grad_norm_bound(self.policy.optimizer, self.max_grad_norm, "max_grad_norm" in self._given)

    def learn(
        self: AnyPPO, total_timesteps: int, callback: Any = None, log_interval: int | None = 1, *args: Any, **kwargs: Any
    ) -> AnyPPO:
        """Train, see `rlopt.agents.learner.Learner.learn`."""
        self._log_interval = log_interval
        if kwargs.get("checkpoints") is not None and log_interval is not None:
            log_interval = 1  # `dump_logs` counts the iterations of the whole run, which Stable-Baselines3 does not
        return super().learn(total_timesteps, callback, log_interval, *args, **kwargs)

    def dump_logs(self, iteration: int = 0) -> None:
        """Write the log data, as in Stable-Baselines3; after a stop the iterations go on from the checkpoint."""
        if self._checkpoints is not None and self._log_interval is not None:
            iteration += self._num_timesteps_at_start // (self.n_steps * self.n_envs)
            if iteration % self._log_interval != 0:
                return
        super().dump_logs(iteration)

    @checked
    def train(self) -> None:
        """Do `n_epochs` passes over the rollout, in batches of `batch_size`."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        progress = self._current_progress_remaining
        # Stable-Baselines3 has made schedules of both.
        clip_range: float = self.clip_range(progress)  # type: ignore[operator]
        clip_range_vf: float | None = None if self.clip_range_vf is None else self.clip_range_vf(progress)  # type: ignore[operator]
        seen: list[Evaluation] = []
        kl_before_epoch = 0  # evaluations of the epochs before the last one, for the log
        stopped = False
        for epoch in range(self.n_epochs):
            kl_before_epoch = len(seen)
            for batch in self.rollout_buffer.get(self.batch_size):
                evaluate = partial(self._evaluate, batch, clip_range, clip_range_vf)
                unless = None if self.target_kl is None else self._is_too_far
                self._finite.begin_step()
                evaluation = take_step(self.policy.optimizer, evaluate, self.max_grad_norm, unless, self._finite)
                if evaluation is None:
                    continue
                seen.append(evaluation)
                if unless is not None and unless(evaluation):
                    stopped = True
                    if self.verbose >= 1:
                        print(f"Early stopping at step {epoch} due to reaching max kl: {seen[-1][-1].item():.2f}")  # noqa: T201
                    break
            self._n_updates += 1
            if stopped:
                break

        for name, values in zip(LOGGED, zip(*seen, strict=True), strict=bool(seen)):  # without `seen` there is nothing to log
            # As Stable-Baselines3: the last loss, the KL divergences of the last epoch, and means of the rest.
            first = {"loss": len(seen) - 1, "approx_kl": kl_before_epoch}.get(name, 0)
            self._record_mean(name, list(values[first:]))
        self._aux.record(self.logger)
        buffer = self.rollout_buffer
        self.logger.record("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)

    def _evaluate(self, batch: Any, clip_range: float, clip_range_vf: float | None) -> Evaluation:
        """Loss of a batch and what is logged, in the order of `LOGGED`."""
        actions = batch.actions.long().flatten() if isinstance(self.action_space, spaces.Discrete) else batch.actions
        values, log_prob, entropy = self._evaluate_actions(batch.observations, actions)
        extra = self._aux.pop(self.policy)
        advantages = self._normalized(batch.advantages) if self.normalize_advantage else batch.advantages
        log_ratio = log_prob - batch.old_log_prob
        policy_loss = losses.clipped_surrogate_loss(log_ratio, advantages, clip_range)
        value_loss = losses.clipped_value_loss(values.flatten(), batch.returns, batch.old_values, clip_range_vf)
        entropy_loss = losses.entropy_loss(entropy, log_prob)
        loss = plus(policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss, extra)
        with th.no_grad():
            kl, fraction = losses.approximate_kl(log_ratio), losses.clip_fraction(log_ratio, clip_range)
        return loss, policy_loss, value_loss, entropy_loss, fraction, kl

    def _evaluate_actions(self, observations: Any, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        return self.policy.evaluate_actions(observations, actions)

    def _normalized(self, advantages: th.Tensor) -> th.Tensor:
        return losses.normalized(advantages)

    def _is_too_far(self, evaluation: Evaluation) -> bool:
        assert self.target_kl is not None
        return evaluation[-1].item() > 1.5 * self.target_kl
