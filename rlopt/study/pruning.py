"""Stopping a run that is clearly worse than earlier ones, as its config says.

`rlopt.study.thresholds` makes the rule from trials that have ended. It stands in the run's config, so that what becomes of a run is
a function of config and seed, whoever runs it and when. The `Recorder` applies it to each evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlopt.study.files import read_json

# Key of the rule in the config of a run. The function of the run does not see it.
RULE_KEY = "pruning_rule"


class Pruned(BaseException):
    """Raised by `Recorder.evaluation` to end a run in order; not an `Exception`, so that a run does not swallow it.

    Args:
        step: Step of the evaluation.
        score: What was judged.
        threshold: What it would have had to reach.
    """

    def __init__(self, step: int, score: float, threshold: float) -> None:
        super().__init__(f"pruned at step {step}: the score {score:.4g} is worse than {threshold:.4g}")


@dataclass(frozen=True)
class Rule:
    """When a run stops.

    Args:
        goal: Whether high scores are good ("maximize") or low ones ("minimize").
        judged: Whether the best score so far is judged ("best"), or that of the evaluation ("last").
        thresholds: Points (step, score), steps increasing. The first evaluation at or after the step stops the run if its score is
            worse; of several points between two evaluations the last one counts.
        total_steps: Steps of a whole run; an evaluation at its end is not judged.
    """

    goal: str
    judged: str
    thresholds: Sequence[tuple[int, float]]
    total_steps: int

    def check(self, steps: Sequence[int], scores: Sequence[float]) -> None:
        """Judge the last of the evaluations of a run.

        Raises:
            Pruned: If the run is to stop.
        """
        before = steps[-2] if len(steps) > 1 else 0
        passed = [threshold for step, threshold in self.thresholds if before < step <= steps[-1]]
        if not passed or steps[-1] >= self.total_steps:
            return
        sign = 1.0 if self.goal == "maximize" else -1.0
        score = scores[-1] if self.judged == "last" else max(scores, key=lambda value: sign * value)
        if sign * score < sign * passed[-1]:
            raise Pruned(steps[-1], score, passed[-1])


def read_rule(folder: Path) -> Rule | None:
    """Return the rule of the run in a folder, None if it has none and always runs to its end."""
    path = folder / "config.json"
    return rule_of(read_json(path)) if path.exists() else None


def rule_of(config: Mapping[str, Any]) -> Rule | None:
    """Return the rule in a config, the thresholds of its seed."""
    content = config.get(RULE_KEY)
    if content is None:
        return None
    points = content["thresholds"].get(str(config["seed"]), [])
    return Rule(content["goal"], content["judged"], [(int(step), float(score)) for step, score in points], content["total_steps"])
