"""Comparing methods at equal budgets: each variant is tuned by the same number of trials, then run with fresh seeds.

Example: two ways to a minimum, in a file `mine.py`::

    from pathlib import Path
    from rlopt.study import Range, Recorder, Task, compare_tuned

    def train(config: dict, seed: int, folder: Path) -> None:
        recorder, position, speed = Recorder(folder), 5.0 + seed % 7, 0.0
        for step in range(1, 21):
            speed = config["momentum"] * speed - config["rate"] * 2 * position
            position += speed
            recorder.evaluation(step, score=position**2)

    if __name__ == "__main__":
        task = Task("parabola", total_steps=20, goal="minimize")
        rate = Range.around(1e-2, 30)
        variants = {"plain": {"rate": rate, "momentum": 0.0}, "heavy ball": {"rate": rate, "momentum": Range(0.5, 0.99)}}
        compare_tuned(train, tasks=[task], variants=variants, num_trials=12, seeds=5, folder="runs/parabola", pruner="median")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from rlopt.study.budget import edge_text, write_search
from rlopt.study.grid import expand
from rlopt.study.launchers import Launcher
from rlopt.study.locks import lock_study
from rlopt.study.ranges import filled, ranges_in
from rlopt.study.runner import run_study
from rlopt.study.search import TRIAL_SEED, SearchStoppedError, tune
from rlopt.study.task import Task
from rlopt.study.thresholds import Pruner
from rlopt.study.trials import Tuned
from rlopt.study.worker import RunFunction

Variants = Mapping[str, Mapping[str, Any]]


def compare_tuned(
    function: str | RunFunction,
    *,
    tasks: Sequence[Task],
    variants: Variants | Callable[[Task], Variants],
    num_trials: int,
    seeds: int | Sequence[int],
    folder: Path | str,
    trial_tasks: Sequence[Task] | None = None,
    trial_seeds: Sequence[int] = (TRIAL_SEED,),
    baseline: str | None = None,
    storage: str | None = None,
    sampler_seed: int = 0,
    batch: int = 2,
    pruner: Pruner | None = None,
    failed_score: float | None = None,
    jobs: int | None = None,
    launcher: str | Launcher = "local",
    retries: int = 3,
) -> int:
    """Tune every variant on every task by the same number of trials, run what was found with fresh seeds, and write the report.

    The report has a section "Tuning" with the budget: trials and their steps, how many failed or were pruned, the steps that this
    saved, the values found, and values at the edge of their range. All trials are in the folder `search`, a study of its own, and
    their numbers in `search.json`. Trials count nowhere else in the report.

    A comparison that was stopped or killed at any moment is continued by the same call; several calls at a time share the work.

    Args:
        function: What a run does, as for `rlopt.study.run_study`.
        tasks: What to compare on. Each variant is tuned for each of them on its own.
        variants: Name -> options, each with one or more `Range` as a value; or a function that returns these for a task, where
            ranges depend on it, with the same names for all tasks.
        num_trials: Trials of each variant on each task, >= 1.
        seeds: Number of seeds (0, 1, ...) of the runs that are compared, or the seeds themselves; none of `trial_seeds`.
        folder: Folder of the comparison, `runs/<study>`.
        trial_tasks: The runs of trials, one for each of `tasks` with its name and goal; shorter ones, for instance. None: `tasks`.
        trial_seeds: Seeds of the runs of a trial.
        baseline: The variant that the report compares the others with; the first one if None.
        storage: As for `tune`; so are `sampler_seed`, `batch`, `pruner` and `failed_score`.
        sampler_seed: Seed of the proposals.
        batch: Trials that are proposed together.
        pruner: How trials are stopped early, if at all.
        failed_score: Score of a trial with a run that fails. None: such a run ends the search with an error.
        jobs: Processes at a time, >= 1, and where they are, as for `run_study`.
        launcher: `local`, `ray` or `slurm`, or an object of `rlopt.study.launchers`.
        retries: How often a run is started again when its process was lost, >= 0.

    Returns:
        An exit status: 0 if all runs are finished, 1 if a run failed, 130 or 143 if stopped by SIGINT or SIGTERM.

    Raises:
        ImportError: If Optuna is not installed.
        ValueError: If a parameter is out of its range, a seed is one of the trials', no trial of a variant was better than
            `failed_score`, or for a reason of `tune` or `run_study`.
    """
    from rlopt.study.reporting import report  # plotting is slow to import

    folder = Path(folder)
    fresh = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    common = sorted(set(fresh) & set(trial_seeds))
    if common:
        raise ValueError(f"seeds must be none of trial_seeds, for runs that chose the options favour them; got {common[0]} in both")
    trial_tasks = tasks if trial_tasks is None else trial_tasks
    if [(task.name, task.goal) for task in trial_tasks] != [(task.name, task.goal) for task in tasks]:
        raise ValueError("trial_tasks must have the names and goals of tasks, in their order")
    options = {task.name: variants(task) if callable(variants) else variants for task in tasks}
    for task in tasks:
        if list(options[task.name]) != list(options[tasks[0].name]):
            raise ValueError(f"variants must have the same names for all tasks, got others for {tasks[0].name} and {task.name}")
    _check_runs(tasks, options, fresh, folder, baseline)

    status, chosen = 0, {}
    try:
        for task in trial_tasks:
            found = tune(
                function,
                task=task,
                variants=options[task.name],
                num_trials=num_trials,
                folder=folder / "search",
                storage=storage,
                seeds=trial_seeds,
                sampler_seed=sampler_seed,
                batch=batch,
                pruner=pruner,
                failed_score=failed_score,
                jobs=jobs,
                launcher=launcher,
                retries=retries,
            )
            record_search(folder, task, found, trial_seeds, pruner)
            _refuse_failures(folder, task, found, failed_score)
            chosen[task.name] = {name: of.options for name, of in found.items()}
    except SearchStoppedError as stopped:
        return stopped.status
    for task in tasks:
        ended = run_study(
            function,
            tasks=[task],
            variants=chosen[task.name],
            seeds=fresh,
            folder=folder,
            baseline=baseline,
            jobs=jobs,
            launcher=launcher,
            retries=retries,
        )
        if ended > 1:
            return ended
        status = max(status, ended)
    report(folder)
    return status


def _check_runs(
    tasks: Sequence[Task], options: Mapping[str, Variants], seeds: Sequence[int], folder: Path, baseline: str | None
) -> None:
    """Refuse what `run_study` would refuse after the search."""
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"tasks must be one or more with different names, got {', '.join(names) or 'none'}")
    for task in tasks:
        started = {
            name: filled(of, {key: span.start for key, span in ranges_in(of).items()}) for name, of in options[task.name].items()
        }
        expand(folder, [task], started, seeds)
        if baseline is not None and baseline not in started:
            raise ValueError(f"baseline must be one of {', '.join(started)}, got {baseline}")


def record_search(folder: Path, task: Task, found: Mapping[str, Tuned], seeds: Sequence[int], pruner: Pruner | None) -> None:
    """Write what a search found to `search.json` beside what is there, and print a line for each variant."""
    entries = {name: _entry(of, task, seeds, pruner) for name, of in found.items()}
    with lock_study(folder, wait_seconds=60.0):
        write_search(folder, task.name, entries)
    for name, entry in entries.items():
        values = ", ".join(f"{option} = {value:.4g}" for option, value in entry["values"].items())
        losses = "".join(f", {entry[what]} {what}" for what in ("failed", "pruned") if entry[what])
        saved = f", {entry['saved_steps']:,} of {entry['total_steps']:,} {task.step_name} saved" if entry["saved_steps"] else ""
        line = f"{task.name} / {name}: {values}; {entry['num_trials']} trials{losses}{saved}."
        console = Console()
        for text in [line, *(edge_text(option, entry) for option in entry["edges"])]:
            console.print(text, markup=False, highlight=False, soft_wrap=True)


def _entry(found: Tuned, task: Task, seeds: Sequence[int], pruner: Pruner | None) -> dict[str, Any]:
    return {
        "num_trials": len(found.trials),
        "trial_steps": task.total_steps,
        "step_name": task.step_name,
        "seeds": list(seeds),
        "pruner": pruner,
        "failed": sum(trial.failed for trial in found.trials),
        "pruned": sum(trial.pruned for trial in found.trials),
        "total_steps": found.total_steps,
        "saved_steps": found.saved_steps,
        "score": found.best.score,
        "values": dict(found.best.values),
        "ranges": {name: asdict(span) for name, span in ranges_in(found.variant).items()},
        "edges": found.edges,
        "trials": [asdict(trial) for trial in found.trials],
    }


def _refuse_failures(folder: Path, task: Task, found: Mapping[str, Tuned], failed_score: float | None) -> None:
    sign = 1.0 if task.goal == "maximize" else -1.0
    for name, of in found.items():
        if failed_score is not None and (of.best.failed or sign * of.best.score <= sign * failed_score):
            raise ValueError(
                f"variants must have ranges that hold working values, but none of {len(of.trials)} trials of {name} on {task.name} "
                f"ended well; see {folder / 'search'}"
            )
