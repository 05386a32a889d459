"""What a search tunes for each replay: the learning rate of the agent, and the main options of the replay."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rlopt.replay import REPLAYS
from rlopt.study import Range

# How far the learning rate is searched from that of the preset, either way. Critics and actors that learn from each other diverge
# sooner than a single network.
RATE_FACTORS: Mapping[str, float] = {"dqn": 10.0, "ddpg": 5.0, "td3": 5.0, "sac": 5.0}


def ranges_of(replay: str, options: Mapping[str, Any]) -> dict[str, Range]:
    """Return the ranges of the main options of a replay; what was given on the command line is left as it is.

    Args:
        replay: Name of the replay.
        options: Its options.
    """
    default = dataclasses.asdict(REPLAYS[replay].config_class())
    return {name: span for name, span in _ranges(replay, options).items() if options[name] == default[name]}


def _ranges(replay: str, options: Mapping[str, Any]) -> dict[str, Range]:
    """Return the ranges with the defaults as first trials."""
    match replay:
        case "prioritized":
            alpha, beta = (0.7, 0.5) if options["priority"] == "rank" else (0.6, 0.4)
            return {"alpha": Range(0.2, 1.0, start=alpha), "beta": Range(0.0, 1.0, start=beta)}
        case "reverse" | "introspective":
            return {"mix": Range(0.0, 0.9, start=0.0)}  # 1 would be uniform replay
        case "emphasize_recent":
            return {"eta": Range(0.99, 1.0, start=0.996)}
        case "hindsight":
            return {"n_sampled_goal": Range(1, 8, integer=True, start=4)}
    return {}  # uniform, combined and greedy replay have no options


def with_ranges(variant: Mapping[str, Any], agent: str) -> dict[str, Any]:
    """Return the options of a run with ranges in the places of what is searched.

    Args:
        variant: `replay`, `replay_options` and `learning_rate_factor`, the factor of the first trial.
        agent: Name of the agent.
    """
    options = variant["replay_options"]
    return {
        **variant,
        "replay_options": {**options, **ranges_of(variant["replay"], options)},
        "learning_rate_factor": Range.around(variant["learning_rate_factor"], RATE_FACTORS[agent]),
    }
