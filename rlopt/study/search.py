"""Tuning before comparing: every variant gets the same number of trials of the same length.

`tune` searches values of options with Optuna (extra `rlopt[search]`); each trial is a run of a study function in a fresh process.
Finished trials are kept in their folders and in Optuna's storage, so that a search that was stopped or killed at any moment goes on
where it was, and ends with the same trials as one that was never disturbed.

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

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rlopt.study.grid import first_difference, folder_name, plain
from rlopt.study.locks import lock_study
from rlopt.study.ranges import Range, filled, ranges_in
from rlopt.study.results import final_score
from rlopt.study.runner import run_study
from rlopt.study.runs import read_evaluations, read_status
from rlopt.study.task import Goal, Task
from rlopt.study.worker import RunFunction

if TYPE_CHECKING:
    import optuna

# Trials have a seed that no run of a comparison has.
TRIAL_SEED = 1_000_000

_RANDOM_TRIALS = 4  # from then on the sampler follows the scores


class SearchStoppedError(Exception):
    """A search was stopped by a signal; the same call goes on.

    Args:
        status: Exit status, 130 after SIGINT and 143 after SIGTERM.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"the search was stopped by a signal, exit status {status}")
        self.status = status


@dataclass(frozen=True)
class Trial:
    """A trial that has ended.

    Args:
        values: Name of each searched option, dotted where it is nested -> its value.
        score: Mean final score over the seeds.
        failed: Whether a run of it failed; then the score is `failed_score`.
    """

    values: Mapping[str, float]
    score: float
    failed: bool


@dataclass(frozen=True)
class Tuned:
    """What a search found for one variant.

    Args:
        variant: The options as they were given, with ranges.
        trials: All trials, in their order.
        goal: Whether high scores are good ("maximize") or low ones ("minimize").
    """

    variant: Mapping[str, Any]
    trials: tuple[Trial, ...]
    goal: Goal

    @property
    def best(self) -> Trial:
        """The trial with the best score, the first one of equals; a failed one only if all have failed."""
        sign = 1.0 if self.goal == "minimize" else -1.0
        return min(self.trials, key=lambda trial: (trial.failed, sign * trial.score))

    @property
    def options(self) -> dict[str, Any]:
        """The options with the best values in the places of the ranges."""
        return filled(self.variant, self.best.values)

    @property
    def edges(self) -> dict[str, Literal["lower", "upper"]]:
        """The options whose best value lies in the outer tenth of its range, where a wider range may hold a better one."""
        found = {name: span.edge(self.best.values[name]) for name, span in ranges_in(self.variant).items()}
        return {name: edge for name, edge in found.items() if edge is not None}


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
    failed_score: float | None = None,
    jobs: int = 1,
) -> dict[str, Tuned]:
    """Search good values for the ranges in each variant, with the same number of equal trials for every variant.

    The first trial of a variant has the starts of its ranges, the next ones are drawn from the ranges, and once four or more have
    ended Optuna's tree-structured Parzen estimator (multivariate) proposes values from their scores. Trials are proposed in batches
    of fixed size, each with a generator of its own, so that the outcome depends neither on `jobs`, nor on how long trials take,
    nor on other variants. A call with more trials goes on from an earlier one, and finds what it would have found at once.

    Args:
        function: What a run does, as for `rlopt.study.run_study`.
        task: The run of a trial. A run's score is its final score; `goal` and `final_evaluations` of the task count.
        variants: Name -> options, each with one or more `Range` as a value, in nested mappings too.
        num_trials: Trials of each variant, >= 1, those that fail included.
        folder: Folder of the trials, itself the folder of a study, `runs/<study>/search` for instance.
        storage: URL of an Optuna storage, such as `sqlite:///runs/search.db`. None: the journal file `optuna/journal.log` in the
            folder, which Optuna's tools can open too.
        seeds: Seeds of the runs of a trial; its score is the mean over them. They should be none of the comparison that follows.
        sampler_seed: Seed of the proposals, >= 0.
        batch: Trials of a variant that are proposed together, without the scores of each other, >= 1.
        failed_score: Score of a trial with a run that fails; finite, a bad one. None: such a run ends the search with an error.
        jobs: Processes at a time, >= 1.

    Returns:
        Name -> what was found. Nothing is judged: the best trial may be a bad one, or lie at the edge of its range.

    Raises:
        ImportError: If Optuna is not installed.
        ValueError: If a parameter is out of its range, the folder or the storage holds a search of another kind, or a run failed
            and there is no `failed_score`.
        SearchStoppedError: If SIGINT or SIGTERM stopped it.

    Reference:
        Akiba, Sano, Yanase, Ohta and Koyama, Optuna: A Next-generation Hyperparameter Optimization Framework, KDD 2019.
    """
    check_installed()
    for name, value, least in (
        ("num_trials", num_trials, 1),
        ("batch", batch, 1),
        ("jobs", jobs, 1),
        ("sampler_seed", sampler_seed, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be >= {least}, got {value}")
    if failed_score is not None and not math.isfinite(failed_score):
        raise ValueError(f"failed_score must be finite, got {failed_score}")
    if not seeds:
        raise ValueError("seeds must hold one or more numbers, got none")
    for name, options in variants.items():
        if not ranges_in(options):
            raise ValueError(f"variants must each hold a Range to search in, got none in {name}")
    search = _Search(task, Path(folder), tuple(seeds), sampler_seed, batch, failed_score)
    with lock_study(search.folder / "optuna"), _quiet():
        studies = {name: search.open(name, options, storage) for name, options in variants.items()}
        for first in range(0, num_trials, batch):
            search.work(function, variants, studies, first, min(batch, num_trials - first), jobs)
        return {
            name: Tuned(options, tuple(_trial(found) for found in _ended(studies[name])[:num_trials]), task.goal)
            for name, options in variants.items()
        }


def check_installed() -> None:
    """Import Optuna.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ImportError("optuna must be installed for a search, but is not: pip install 'rlopt[search]'.") from error


@dataclass(frozen=True)
class _Search:
    """What all variants of a search share."""

    task: Task
    folder: Path
    seeds: tuple[int, ...]
    sampler_seed: int
    batch: int
    failed_score: float | None

    def open(self, name: str, options: Mapping[str, Any], storage: str | None) -> optuna.Study:
        """Return the Optuna study of a variant, which holds the trials that have ended.

        Raises:
            ValueError: If it is one of another search.
        """
        import optuna

        study = optuna.create_study(
            storage=_journal(self.folder / "optuna") if storage is None else storage,
            study_name="/".join((self.folder.resolve().parent.name, self.folder.resolve().name, self.task.name, name)),
            direction=self.task.goal,
            load_if_exists=True,
        )
        definition = self._definition(name, options)
        if "definition" not in study.user_attrs:
            study.set_user_attr("definition", definition)
        difference = first_difference(study.user_attrs["definition"], definition)
        if difference is not None:
            field, old, new = difference
            raise ValueError(
                f"{self.folder} holds a search for {name} with {field} = {old}, but {field} = {new} is asked for; "
                f"choose another study name or delete that folder"
            )
        return study

    def work(
        self,
        function: str | RunFunction,
        variants: Mapping[str, Mapping[str, Any]],
        studies: Mapping[str, optuna.Study],
        first: int,
        count: int,
        jobs: int,
    ) -> None:
        """Run a batch of every variant, without the trials that have ended, and note the scores in order."""
        missing = {}  # (variant, number of the trial) -> values
        for name, options in variants.items():
            ended = _ended(studies[name])
            if len(ended) < first + count:
                proposed = self._propose(ranges_in(options), ended[:first], count)
                missing.update({(name, first + i): proposed[i] for i in range(len(ended) - first, count)})
        if not missing:
            return
        folders = {key: f"{key[0]}_trial_{key[1]}" for key in missing}
        status = run_study(
            function,
            tasks=[self.task],
            variants={folders[key]: filled(variants[key[0]], values) for key, values in missing.items()},
            seeds=self.seeds,
            folder=self.folder,
            jobs=jobs,
        )
        if status > 1:
            raise SearchStoppedError(status)
        scores = {key: self._score(folders[key]) for key in missing}  # all of them, before any is noted
        for key, values in missing.items():
            self._note(studies[key[0]], ranges_in(variants[key[0]]), values, scores[key])

    def _propose(
        self, ranges: Mapping[str, Range], ended: Sequence[optuna.trial.FrozenTrial], count: int
    ) -> list[dict[str, float]]:
        """Return the values of a batch, which depend on the trials before it only."""
        import optuna

        number = len(ended) // self.batch
        seed = int(np.random.SeedSequence(self.sampler_seed, spawn_key=(number,)).generate_state(1)[0])
        sampler = optuna.samplers.TPESampler(n_startup_trials=_RANDOM_TRIALS, multivariate=True, constant_liar=True, seed=seed)
        study = optuna.create_study(direction=self.task.goal, sampler=sampler)
        study.add_trials(ended)
        if not ended:
            study.enqueue_trial({name: span.start for name, span in ranges.items()})
        distributions = {name: _distribution(span) for name, span in ranges.items()}
        drawn = [study.ask(distributions).params for _ in range(count)]
        starts = 0 if ended else 1  # given, not drawn: they are used as they are
        return [*drawn[:starts], *({name: span.tidy(values[name]) for name, span in ranges.items()} for values in drawn[starts:])]

    def _score(self, variant: str) -> float | None:
        """Return the score of a trial, None if a run of it failed."""
        scores = []
        for seed in self.seeds:
            run = self.folder / folder_name(self.task.name) / folder_name(variant) / f"seed_{seed}"
            status = read_status(run)
            if status == "failed":
                if self.failed_score is None:
                    raise ValueError(f"every run of a search must end, but one has failed: see error.txt in {run}")
                return None
            if status != "finished":
                raise ValueError(f"every run of a search must end, but {run} is {status}; start the search again")
            rows = read_evaluations(run)
            if not rows:
                raise ValueError(f"every run of a search must record an evaluation, but {run} has none")
            scores.append(final_score(np.array([row.score for row in rows]), self.task.final_evaluations))
        return float(np.mean(scores))

    def _note(self, study: optuna.Study, ranges: Mapping[str, Range], values: Mapping[str, float], score: float | None) -> None:
        import optuna

        study.add_trial(
            optuna.trial.create_trial(
                params=dict(values),
                distributions={name: _distribution(span) for name, span in ranges.items()},
                value=self.failed_score if score is None else score,
                user_attrs={"failed": score is None},
            )
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
            },
            f"the search for {name}",
        )


def _ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number)


def _trial(found: optuna.trial.FrozenTrial) -> Trial:
    assert found.value is not None
    return Trial(dict(found.params), found.value, found.user_attrs["failed"])


def _distribution(span: Range) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    if span.integer:
        return IntDistribution(int(span.low), int(span.high), log=span.log)
    return FloatDistribution(span.low, span.high, log=span.log)


def _journal(folder: Path) -> optuna.storages.BaseStorage:
    """Open the journal in a folder that this process holds; repair what a process that was killed may have left."""
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    path = folder / "journal.log"
    if path.exists():
        Path(f"{path}.lock").unlink(missing_ok=True)
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)  # the last line may be half written
    return JournalStorage(JournalFileBackend(str(path)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Optuna says about each study and trial; warnings stay."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
