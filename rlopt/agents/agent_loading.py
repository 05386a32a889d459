"""Agents made of a checkpoint: what `load` of rlopt's agents does with a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stable_baselines3.common.utils import check_for_correct_spaces

from rlopt.agents.agent_state import give_learned
from rlopt.agents.checkpoints import Checkpoints, read_agent
from rlopt.agents.making import revive, revive_space
from rlopt.files.checkpoint import MANIFEST


def load_agent(kind: type[Any], folder: Path, env: Any, device: Any, changes: dict[str, Any]) -> Any:
    """Make an agent of a checkpoint; see `rlopt.agents.learner.Learner.load`."""
    if (folder / MANIFEST).exists():
        path, state = folder, read_agent(folder)
    else:
        found = Checkpoints(folder).read()
        if found is None:
            raise ValueError(f"path must be a checkpoint, or a folder of checkpoints, got {str(folder)!r}.")
        path, state = found
    if state["agent"] != kind.__name__:
        raise ValueError(f"{path} is a checkpoint of {state['agent']}, got a {kind.__name__}.")
    made_of = state["made_of"]
    if made_of["arguments"] is None:
        raise ValueError(f"{path} does not know the arguments of its agent, which Stable-Baselines3 loaded from a file.")
    missing = sorted(set(made_of["unsaid"]) - changes.keys())
    if missing:
        raise ValueError(f"{missing[0]} must be given, because {path} cannot hold it: pass it to load.")
    arguments = {**revive(made_of["arguments"]), **changes}
    agent = kind(**arguments, env=env, device=device, _init_setup_model=False)
    spaces = {name: revive_space(made_of[name]) for name in ("observation_space", "action_space")}
    if agent.env is None:
        for name, space in spaces.items():
            setattr(agent, name, space)
        agent.n_envs = made_of["n_envs"]
    elif agent.n_envs != made_of["n_envs"]:
        raise ValueError(f"env must have {made_of['n_envs']} environments as in {path}, got {agent.n_envs}.")
    else:
        check_for_correct_spaces(agent.env, spaces["observation_space"], spaces["action_space"])
    if made_of["target_entropy"] is not None:
        agent.target_entropy = made_of["target_entropy"]  # SAC would ask its environment
    agent._setup_model()
    give_learned(agent, state, path)
    agent.num_timesteps = agent._num_timesteps_at_start = state["counters"]["num_timesteps"]
    agent._n_updates = state["counters"]["_n_updates"]
    return agent
