"""Tuning before comparing: every variant gets the same number of trials of the same length.

`tune` searches values of options with Optuna (extra `rlopt[search]`); each trial is a run of a study function in a fresh process.
Finished trials are kept in their folders and in Optuna's storage, so that a search that was stopped or killed at any moment goes on
where it was, and ends with the same trials as one that was never disturbed. Several commands, on several machines that see the
folder, share the trials of one search.

Example: the rate of a gradient step on a parabola, in a file `mine.py`::

    from pathlib import Path
    from rlopt.study import Range, Recorder, Task, run_study, tune

    def train(config: dict, seed: int, folder: Path) -> None:
        position = 5.0
        for _ in range(10):
            position -= config["rate"] * 2 * position
        Recorder(folder).evaluation(step=10, score=position**2)

    if __name__ == "__main__":
        task = Task("parabola", total_steps=10, goal="minimize")
        variants = {"sgd": {"rate": Range.around(1e-2, 30)}}
        found = tune(train, task=task, variants=variants, num_trials=8, folder="runs/parabola/search")
        run_study(train, tasks=[task], variants={name: of.options for name, of in found.items()}, seeds=5, folder="runs/parabola")
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlopt.study.grid import expand, first_difference, plain
from rlopt.study.launchers import Launcher
from rlopt.study.pruning import RULE_KEY
from rlopt.study.ranges import Range, filled, ranges_in
from rlopt.study.runner import run_study
from rlopt.study.runs import check_config, read_status
from rlopt.study.storage import Storage, check_installed, quiet
from rlopt.study.task import Task
from rlopt.study.thresholds import Curve, Pruner, check_pruner, make_rule
from rlopt.study.trials import Outcome, Trial, Tuned, read_outcome
from rlopt.study.worker import RunFunction

if TYPE_CHECKING:
    import optuna

# Trials have a seed that no run of a comparison has.
TRIAL_SEED = 1_000_000

_RANDOM_TRIALS = 4  # from then on the sampler follows the scores

Ended = Sequence["optuna.trial.FrozenTrial"]


class SearchStoppedError(Exception):
    """A search was stopped by a signal; the same call goes on.

    Args:
        status: Exit status, 130 after SIGINT and 143 after SIGTERM.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"the search was stopped by a signal, exit status {status}")
        self.status = status


def tune(
    function: str | RunFunction,
    *,
    task: Task,
    variants: Mapping[str, Mapping[str, Any]],
    num_trials: int,
    folder: Path | str,
    storage: str | None = None,
    seeds: Sequence[int] = (TRIAL_SEED,),
    sampler_seed: int = 0,
    batch: int = 2,
    pruner: Pruner | None = None,
    failed_score: float | None = None,
    jobs: int | None = None,
    launcher: str | Launcher = "local",
    retries: int = 3,
) -> dict[str, Tuned]:
    """Search good values for the ranges in each variant, with the same number of equal trials for every variant.

    The first trial of a variant has the starts of its ranges, the next ones are drawn from the ranges, and once four or more have
    ended Optuna's tree-structured Parzen estimator (multivariate) proposes values from their scores. Trials are proposed in batches
    of fixed size, each with a generator of its own, so that the outcome depends neither on `jobs`, nor on how long trials take,
    nor on other variants. A call with more trials goes on from an earlier one, and finds what it would have found at once.

    Calls with the same arguments may run at the same time, in processes of one or of several machines that see the same folder:
    they share the trials of each batch, and all return the same.

    With a pruner a run stops early if it is clearly worse than the runs of earlier batches were at equal steps. It is judged at its
    evaluations by thresholds that are fixed before it starts and stand in its config, so that all that was said above holds with
    pruning too. The first four trials are never judged, and the last evaluation of a run never is.

    Args:
        function: What a run does, as for `rlopt.study.run_study`.
        task: The run of a trial. A run's score is its final score; `goal` and `final_evaluations` of the task count.
        variants: Name -> options, each with one or more `Range` as a value, in nested mappings too.
        num_trials: Trials of each variant, >= 1, those that fail included.
        folder: Folder of the trials, itself the folder of a study, `runs/<study>/search` for instance.
        storage: URL of an Optuna storage, such as `sqlite:///runs/search.db`. None: the journal file `optuna/journal.log` in the
            folder, which Optuna's tools can open too. Commands that share a search share its folder with either.
        seeds: Seeds of the runs of a trial; its score is the mean over them. They should be none of the comparison that follows.
        sampler_seed: Seed of the proposals, >= 0.
        batch: Trials of a variant that are proposed together, without the scores of each other, >= 1.
        pruner: `median`: from a quarter of the steps on, a run whose best score so far is worse than the median of earlier runs at
            that step is stopped. `halving`: at 1/8, 1/4 and 1/2 of the steps, one that is not among the better half of all that got
            there. With several seeds each run is judged against those with its seed, and a trial with one pruned run counts as
            pruned. Scores of pruned trials guide the sampler, but are never the best. None: all runs go to their end.
        failed_score: Score of a trial with a run that fails; finite, a bad one. None: such a run ends the search with an error.
        jobs: Processes at a time, >= 1, and where they are, as for `run_study`.
        launcher: `local`, `ray` or `slurm`, or an object of `rlopt.study.launchers`.
        retries: How often a run is started again when its process was lost, >= 0.

    Returns:
        Name -> what was found. Nothing is judged: the best trial may be a bad one, or lie at the edge of its range.

    Raises:
        ImportError: If Optuna is not installed.
        ValueError: If a parameter is out of its range, the folder or the storage holds a search of another kind, the storage does
            not answer, or a run failed and there is no `failed_score`.
        SearchStoppedError: If SIGINT or SIGTERM stopped it.

    Reference:
        Akiba, Sano, Yanase, Ohta and Koyama, Optuna: A Next-generation Hyperparameter Optimization Framework, KDD 2019.
    """
    check_installed()
    for name, value, least in (
        ("num_trials", num_trials, 1),
        ("batch", batch, 1),
        ("jobs", 1 if jobs is None else jobs, 1),
        ("sampler_seed", sampler_seed, 0),
        ("retries", retries, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be >= {least}, got {value}")
    if failed_score is not None and not math.isfinite(failed_score):
        raise ValueError(f"failed_score must be finite, got {failed_score}")
    if not seeds:
        raise ValueError("seeds must hold one or more numbers, got none")
    check_pruner(pruner)
    for name, options in variants.items():
        if not ranges_in(options):
            raise ValueError(f"variants must each hold a Range to search in, got none in {name}")
        if RULE_KEY in options or RULE_KEY in task.config:
            raise ValueError(f"config of {name} must have no key {RULE_KEY!r}, which belongs to the search; rename it")
    search = _Search(
        function,
        task,
        Path(folder),
        Storage(storage, Path(folder) / "optuna"),
        tuple(seeds),
        sampler_seed,
        batch,
        pruner,
        failed_score,
        jobs,
        launcher,
        retries,
    )
    ended = search.begin(variants)
    for first in range(0, num_trials, batch):
        last = min(first + batch, num_trials)
        if any(len(found) < last for found in ended.values()):
            ended = search.work(variants, ended, first, last)
    trial_steps = len(seeds) * task.total_steps
    return {
        name: Tuned(options, tuple(_trial(found) for found in ended[name][:num_trials]), task.goal, trial_steps)
        for name, options in variants.items()
    }


@dataclass(frozen=True)
class _Search:
    """What all variants of a search share."""

    function: str | RunFunction
    task: Task
    folder: Path
    storage: Storage
    seeds: tuple[int, ...]
    sampler_seed: int
    batch: int
    pruner: Pruner | None
    failed_score: float | None
    jobs: int | None
    launcher: str | Launcher
    retries: int

    def begin(self, variants: Mapping[str, Mapping[str, Any]]) -> dict[str, Ended]:
        """Begin the search or go on; return the trials of each variant that have ended.

        Raises:
            ValueError: If the storage holds another search.
        """
        with self.storage.opened() as storage:
            for name, options in variants.items():
                study, definition = self._study(storage, name), self._definition(name, options)
                if "definition" not in study.user_attrs:
                    study.set_user_attr("definition", definition)
                difference = first_difference(study.user_attrs["definition"], definition)
                if difference is not None:
                    field, old, new = difference
                    own = self.storage.is_journal
                    place, way = (self.folder, "delete that folder") if own else (self.storage, "another storage")
                    raise ValueError(
                        f"{place} holds a search for {name} with {field} = {old}, but {field} = {new} is asked for; "
                        f"choose another study name or {way}"
                    )
            return {name: _ended(self._study(storage, name)) for name in variants}

    def work(
        self, variants: Mapping[str, Mapping[str, Any]], ended: Mapping[str, Ended], first: int, last: int
    ) -> dict[str, Ended]:
        """Run the batch of trials `first` to `last` - 1 of every variant, note how they ended, and return all that have ended."""
        missing: dict[tuple[str, int], dict[str, float]] = {}  # (variant, number of the trial) -> values
        trials: dict[str, dict[str, Any]] = {}  # name of the trial -> options
        for name, options in variants.items():
            if len(ended[name]) >= last:
                continue
            proposed = self._propose(ranges_in(options), ended[name][:first], last - first)
            rule = self._rule(ended[name][:first])
            for number in range(len(ended[name]), last):
                missing[name, number] = proposed[number - first]
                trials[f"{name}_trial_{number}"] = {**filled(options, proposed[number - first]), **rule}
        outcomes = self._outcomes(trials)  # of all, before any is noted
        with self.storage.opened() as storage:
            for (name, number), outcome in zip(missing, outcomes, strict=True):
                study = self._study(storage, name)
                if len(_ended(study)) == number:  # else another command has noted it
                    self._note(study, number, ranges_in(variants[name]), missing[name, number], outcome)
            return {name: _ended(self._study(storage, name)) for name in variants}

    def _outcomes(self, trials: Mapping[str, Mapping[str, Any]]) -> list[Outcome]:
        """Do the runs of trials that have not ended, wait for those that other commands do, and return how the trials ended.

        Raises:
            ValueError: If a run failed and there is no score for it, or was stopped from outside.
        """
        grid = expand(self.folder, [self.task], trials, self.seeds)
        for run in grid:
            check_config(run)
        runs = {trial: [run for run in grid if run.variant == trial] for trial in trials}
        outcomes: dict[str, Outcome] = {}
        while True:
            for trial in trials:
                found = None if trial in outcomes else read_outcome(self.task, runs[trial], may_fail=self.failed_score is not None)
                if found is not None:
                    outcomes[trial] = found
            left = {trial: options for trial, options in trials.items() if trial not in outcomes}
            if not left:
                return [outcomes[trial] for trial in trials]
            status = run_study(
                self.function,
                tasks=[self.task],
                variants=left,
                seeds=self.seeds,
                folder=self.folder,
                jobs=self.jobs,
                launcher=self.launcher,
                retries=self.retries,
            )
            if status > 1:
                raise SearchStoppedError(status)
            for run in (run for trial in left for run in runs[trial]):
                ended = read_status(run.folder)
                if ended == "failed" and self.failed_score is None:
                    raise ValueError(f"every run of a search must end, but one has failed: see error.txt in {run.folder}")
                if ended in ("waiting", "interrupted"):
                    raise ValueError(f"every run of a search must end, but {run.folder} is {ended}; start the search again")

    def _propose(self, ranges: Mapping[str, Range], ended: Ended, count: int) -> list[dict[str, float]]:
        """Return the values of a batch, which depend on the trials before it only."""
        import optuna

        number = len(ended) // self.batch
        seed = int(np.random.SeedSequence(self.sampler_seed, spawn_key=(number,)).generate_state(1)[0])
        sampler = optuna.samplers.TPESampler(n_startup_trials=_RANDOM_TRIALS, multivariate=True, constant_liar=True, seed=seed)
        with quiet():
            study = optuna.create_study(direction=self.task.goal, sampler=sampler)
            study.add_trials(ended)
            if not ended:
                study.enqueue_trial({name: span.start for name, span in ranges.items()})
            distributions = {name: _distribution(span) for name, span in ranges.items()}
            drawn = [study.ask(distributions).params for _ in range(count)]
        starts = 0 if ended else 1  # given, not drawn: they are used as they are
        return [*drawn[:starts], *({name: span.tidy(values[name]) for name, span in ranges.items()} for values in drawn[starts:])]

    def _rule(self, ended: Ended) -> dict[str, Any]:
        """Return what the configs of a batch say about pruning, which depends on the trials before it only."""
        if self.pruner is None or not ended:
            return {}
        trials = [trial.user_attrs for trial in ended if not trial.user_attrs["failed"]]
        earlier = {seed: [_curve(attributes, seed) for attributes in trials] for seed in self.seeds}
        return {RULE_KEY: make_rule(self.pruner, self.task, earlier)}

    def _note(
        self, study: optuna.Study, number: int, ranges: Mapping[str, Range], values: Mapping[str, float], outcome: Outcome
    ) -> None:
        import optuna
        from optuna.trial import TrialState

        attributes: dict[str, Any] = {"number": number, "failed": outcome.score is None}
        if self.pruner is not None:
            attributes |= {"curves": outcome.curves, "pruned": outcome.pruned, "saved_steps": outcome.saved_steps}
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.PRUNED if outcome.pruned else TrialState.COMPLETE,
                params=dict(values),
                distributions={name: _distribution(span) for name, span in ranges.items()},
                value=self.failed_score if outcome.score is None else outcome.score,
                user_attrs=attributes,
                intermediate_values={} if self.pruner is None else outcome.mean_curve,
            )
        )

    def _study(self, storage: optuna.storages.BaseStorage, name: str) -> optuna.Study:
        import optuna

        folder = self.folder.resolve()
        return optuna.create_study(
            storage=storage,
            study_name="/".join((folder.parent.name, folder.name, self.task.name, name)),
            direction=self.task.goal,
            load_if_exists=True,
        )

    def _definition(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return what determines the trials of a variant, as JSON values."""
        return plain(
            {
                "config": {**self.task.config, **filled(options, {key: asdict(span) for key, span in ranges_in(options).items()})},
                "total_steps": self.task.total_steps,
                "goal": self.task.goal,
                "final_evaluations": self.task.final_evaluations,
                "seeds": self.seeds,
                "sampler_seed": self.sampler_seed,
                "batch": self.batch,
                "failed_score": self.failed_score,
                **({} if self.pruner is None else {"pruner": self.pruner}),
            },
            f"the search for {name}",
        )


def _ended(study: optuna.Study) -> Ended:
    """Return the trials of a study in order; of one that was noted twice, by commands that do not share a folder, the first."""
    found: dict[int, optuna.trial.FrozenTrial] = {}
    for trial in sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number):
        found.setdefault(trial.user_attrs.get("number", trial.number), trial)
    return [found[number] for number in range(len(found))]


def _trial(found: optuna.trial.FrozenTrial) -> Trial:
    assert found.value is not None
    noted = found.user_attrs
    return Trial(dict(found.params), found.value, noted["failed"], bool(noted.get("pruned")), noted.get("saved_steps", 0))


def _curve(noted: Mapping[str, Any], seed: int) -> Curve:
    steps, scores = np.array(noted["curves"][str(seed)], dtype=np.float64).T  # each (evaluations,)
    return Curve(steps, scores, seed not in noted["pruned"])


def _distribution(span: Range) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    if span.integer:
        return IntDistribution(int(span.low), int(span.high), log=span.log)
    return FloatDistribution(span.low, span.high, log=span.log)
