"""TD errors of stored transitions under an agent's current networks: what prioritized and introspective replay rank by."""

from __future__ import annotations

from typing import Any

import torch as th
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from rlopt.agents import losses
from rlopt.replay import ReplayBatch

Batch = ReplayBatch | ReplayBufferSamples


def discounts_of(agent: OffPolicyAlgorithm, batch: Batch) -> th.Tensor | float:
    """The batch's own discounts (n-step returns), else the agent's gamma."""
    return agent.gamma if batch.discounts is None else batch.discounts


@th.no_grad()
def dqn_target(agent: DQN, batch: Batch) -> th.Tensor:
    """Target of DQN, (B, 1); the double-Q target if the agent has `double_q` set."""
    online = agent.q_net(batch.next_observations) if getattr(agent, "double_q", False) else None
    next_values = losses.greedy_value(agent.q_net_target(batch.next_observations), online)
    return losses.td_target(batch.rewards, batch.dones, discounts_of(agent, batch), next_values)


@th.no_grad()
def td3_target(agent: TD3, batch: Batch) -> th.Tensor:
    """Target of TD3 and DDPG, (B, 1): smallest target critic at the smoothed target action."""
    noise = th.empty_like(batch.actions).normal_(0, agent.target_policy_noise)
    next_actions = losses.smoothed_action(agent.actor_target(batch.next_observations), noise, agent.target_noise_clip)
    next_values = losses.smallest_value(agent.critic_target(batch.next_observations, next_actions))
    return losses.td_target(batch.rewards, batch.dones, discounts_of(agent, batch), next_values)


@th.no_grad()
def sac_target(agent: SAC, batch: Batch, ent_coef: th.Tensor) -> th.Tensor:
    """Target of SAC, (B, 1): smallest target critic at a sampled action, plus the entropy bonus."""
    next_actions, log_prob = agent.actor.action_log_prob(batch.next_observations)
    next_q = losses.smallest_value(agent.critic_target(batch.next_observations, next_actions))
    next_values = losses.entropy_regularised_value(next_q, log_prob.reshape(-1, 1), ent_coef)
    return losses.td_target(batch.rewards, batch.dones, discounts_of(agent, batch), next_values)


def sac_entropy_coefficient(agent: SAC) -> th.Tensor:
    """alpha, without gradient."""
    return agent.ent_coef_tensor if agent.log_ent_coef is None else th.exp(agent.log_ent_coef.detach())


@th.no_grad()
def td_error(agent: OffPolicyAlgorithm, batch: Any) -> th.Tensor:
    """TD errors y - Q(s, a), (B, 1); with several critics the smallest Q.

    Args:
        agent: A DQN, DDPG, TD3 or SAC of rlopt or of Stable-Baselines3.
        batch: A batch on the agent's device.

    Raises:
        TypeError: For another agent.
    """
    if isinstance(agent, DQN):
        q: th.Tensor = agent.q_net(batch.observations).gather(1, batch.actions.long())
        return dqn_target(agent, batch) - q
    if isinstance(agent, TD3 | SAC):
        target = td3_target(agent, batch) if isinstance(agent, TD3) else sac_target(agent, batch, sac_entropy_coefficient(agent))
        return target - losses.smallest_value(agent.critic(batch.observations, batch.actions))
    raise TypeError(f"TD errors are known for DQN, DDPG, TD3 and SAC, not for {type(agent).__name__}.")
