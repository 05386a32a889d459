"""One run of an estimator on a system or a regression with a known answer, and the limits to measure it by."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.logger import configure

from rlopt import sysid
from rlopt.study import Recorder
from rlopt_envs.ar_chain import ar_chain
from rlopt_envs.systems import LinearSystem, NonlinearSystem, random_bimodal

FloatArray = NDArray[np.float64]

# Steps of the trajectory that stands for the stationary law of a non-linear system.
_LAW_STEPS = 200_000

# Metric -> its name in the report. All are distances of the estimate from the truth.
METRICS = {
    "operator": "operator-norm error",
    "frobenius": "Frobenius error",
    "squared": "squared Frobenius error",
    "prediction": "excess prediction risk",
}


class Problem(NamedTuple):
    """What is to be estimated, and from what.

    Args:
        truth: The matrix W in target = link(W regressor) + noise, shape (k, p).
        covariance: Stationary covariance of the regressors, (p, p); None where no formula is known.
        noise_cov: Covariance of the noise, (k, k).
        data: States (T + 1, p), or regressors (T, p) and targets (T, k).
    """

    truth: FloatArray
    covariance: FloatArray | None
    noise_cov: FloatArray
    data: FloatArray | tuple[FloatArray, FloatArray]


def identify(config: dict[str, Any], seed: int, folder: Path) -> None:
    """Estimate from a growing part of one trajectory; the function of the study.

    Args:
        config: `setting` (linear, nonlinear or markov) and its options, `num_samples`, `num_checkpoints`, `metric`, `estimator`,
            and the options of the estimators.
        seed: Everything random derives from it: the system and the data, which all estimators share, and the draws of an estimator.
        folder: Where progress.csv and TensorBoard events go.
    """
    recorder = Recorder(folder)
    recorder.progress(0)
    problem = make_problem(config, seed)
    estimator = make_estimator(config, problem, seed)
    history = estimator.fit(problem.data, num_checkpoints=config["num_checkpoints"]).history_
    found = errors(history.estimates, problem)
    logger = configure(str(folder), ["csv", "tensorboard"])
    for index, step in enumerate(history.samples.tolist()):
        recorder.evaluation(step, float(found[config["metric"]][index]))
        for name, values in found.items():
            logger.record(f"error/{name}", float(values[index]))
        logger.record("samples", step, exclude="tensorboard")
        logger.dump(step)
    logger.close()


def make_problem(config: dict[str, Any], seed: int) -> Problem:
    """Draw the system of a seed and its data."""
    system_rng, data_rng = _generators(seed, 2)
    num_states, num_samples = config["num_states"], config["num_samples"]
    noise_cov = config["noise_std"] ** 2 * np.eye(num_states)
    match config["setting"]:
        case "linear":
            linear = LinearSystem(random_bimodal(num_states, config["spectral_radius"], system_rng), noise_cov=noise_cov)
            return Problem(linear.A, linear.stationary_covariance(), noise_cov, linear.simulate(num_samples, data_rng))
        case "nonlinear":
            system = _nonlinear_system(config, system_rng)
            return Problem(system.A, None, noise_cov, system.simulate(num_samples, data_rng))
        case "markov":
            weights = system_rng.standard_normal((1, num_states))
            weights /= np.linalg.norm(weights)  # uniform on the sphere
            x = ar_chain(num_samples, num_states, config["epsilon"], data_rng)
            y = x @ weights.T + config["noise_std"] * data_rng.standard_normal((num_samples, 1))
            return Problem(weights, np.eye(num_states) / num_states, noise_cov[:1, :1], (x, y))
        case setting:
            raise ValueError(f"setting must be linear, nonlinear or markov, got {setting}")


def make_estimator(config: dict[str, Any], problem: Problem, seed: int) -> sysid.Estimator:
    """Return the estimator of a run."""
    link: dict[str, Any] = {"link": "identity"}
    if config["setting"] == "nonlinear":
        link = {"link": "leaky_relu", "slope": config["slope"]}
    iterations = {"num_iterations": config["num_iterations"], **link}
    name = config["estimator"]
    if name == "least_squares":
        return sysid.LeastSquares()
    if name == "quasi_newton":
        return sysid.QuasiNewton(step_size=config["quasi_newton_step_size"], **iterations)
    if name == "glmtron":
        return sysid.GLMtron(step_size=config["glmtron_step_size"], **iterations)
    step_size = config["step_size"]
    if isinstance(step_size, str):  # the same step for all estimators, those without buffers included
        regressors = problem.data[0] if isinstance(problem.data, tuple) else problem.data
        step_size = sysid.step_size_from_rule(step_size, regressors, config["num_samples"], config["buffer_size"]).value
    common = {"step_size": step_size, "tail_start": config["tail_start"], **link}
    buffers = {"buffer_size": config["buffer_size"], "gap": config["gap"], **common}
    match name:
        case "sgd":
            return sysid.SGD(**common)
        case "sgd_data_drop":
            return sysid.SGDDataDrop(spacing=config["spacing"], **common)
        case "parallel_sgd":
            return sysid.ParallelSGD(num_chains=config["num_chains"], **common)
        case "sgd_replay":
            return sysid.SGDReplay(seed=np.random.SeedSequence(seed, spawn_key=(2,)), **buffers)
        case "sgd_reverse_replay":
            return sysid.SGDReverseReplay(**buffers)
        case _:
            raise ValueError(f"estimator must be one that this experiment knows, got {name}")


def errors(estimates: FloatArray, problem: Problem) -> dict[str, FloatArray]:
    """Return the error of estimates (H, k, p) by metric, each of shape (H,), as far as they are defined for the problem."""
    frobenius = sysid.frobenius_error(estimates, problem.truth)
    found = {"operator": sysid.operator_error(estimates, problem.truth), "frobenius": frobenius, "squared": frobenius**2}
    if problem.covariance is not None:
        found["prediction"] = sysid.prediction_risk(estimates, problem.truth, problem.covariance)
    return found


def limit(config: dict[str, Any], num_seeds: int) -> list[tuple[float, float]]:
    """Return two points (samples, error) of the asymptotic statistical limit of the metric, none where it is not known.

    For a linear system and for the chain it is the same for every seed; for a non-linear system it depends on the matrix, and the
    mean over seeds is returned.
    """
    metric, setting = config["metric"], config["setting"]
    if setting == "nonlinear":
        if metric == "operator":
            return []
        values = np.array([_nonlinear_frobenius(config, seed) for seed in range(num_seeds)])
        of_one_sample = float(np.mean(values**2 if metric == "squared" else values))
    else:
        problem = make_problem({**config, "num_samples": 1}, seed=0)
        assert problem.covariance is not None
        match metric:
            case "operator":
                of_one_sample = float(sysid.operator_limit(problem.noise_cov, problem.covariance, 1))
            case "prediction":
                of_one_sample = float(sysid.prediction_limit(problem.noise_cov, config["num_states"], 1))
            case _:
                frobenius = float(sysid.frobenius_limit(problem.noise_cov, problem.covariance, 1))
                of_one_sample = frobenius**2 if metric == "squared" else frobenius
    power = -1.0 if metric in ("squared", "prediction") else -0.5
    num_samples = config["num_samples"]
    return [(1.0, of_one_sample), (float(num_samples), of_one_sample * num_samples**power)]


def _nonlinear_system(config: dict[str, Any], rng: np.random.Generator) -> NonlinearSystem:
    matrix = random_bimodal(config["num_states"], config["spectral_radius"], rng)
    noise_cov = config["noise_std"] ** 2 * np.eye(config["num_states"])
    return NonlinearSystem(matrix, noise_cov=noise_cov, link="leaky_relu", slope=config["slope"])


def _nonlinear_frobenius(config: dict[str, Any], seed: int) -> float:
    """Return the limit of the Frobenius error for the matrix of a seed, times the root of the number of samples."""
    system_rng, _, _, law_rng = _generators(seed, 4)
    system = _nonlinear_system(config, system_rng)
    states = system.simulate(_LAW_STEPS, law_rng)
    value = sysid.nonlinear_frobenius_limit(
        system.A, states[_LAW_STEPS // 20 :], config["noise_std"] ** 2, 1, link="leaky_relu", slope=config["slope"]
    )
    return float(value)


def _generators(seed: int, count: int) -> list[np.random.Generator]:
    """Return the generators of a seed: of the system, its data, the estimator's draws, and the law for the limit."""
    return [np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(key,))) for key in range(count)]
