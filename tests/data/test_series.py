"""Series: shapes, reproducibility, and that a sliding template finds the classes where a linear model does not."""

import numpy as np
import pytest

from rlopt.data import series_like
from rlopt.data.series import _templates


def test_series_are_determined_by_the_seed() -> None:
    first, again, other = series_like(50, 3), series_like(50, 3), series_like(50, 4)
    np.testing.assert_array_equal(first.inputs, again.inputs)
    assert not np.array_equal(first.inputs, other.inputs)
    assert first.inputs.dtype == np.float32
    assert first.inputs.shape == (50, 40)


def test_classes_are_equally_frequent_and_noise_has_its_size() -> None:
    data = series_like(20_000, num_test=1)
    assert data.targets is not None
    counts = np.bincount(data.targets, minlength=10)
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(20_000 * 0.1 * 0.9)
    # Same classes, places and factors with and without noise: the difference is the noise.
    quiet = series_like(20_000, num_test=1, noise=0.0)
    assert (data.inputs - quiet.inputs).std() == pytest.approx(0.25, rel=0.01)


def test_a_template_that_slides_finds_most_classes_and_a_linear_model_few() -> None:
    data = series_like(2000, num_test=500, noise=0.1)
    assert data.targets is not None
    assert data.test_inputs is not None
    scores = []
    for template in _templates():
        stretched = [np.interp(np.linspace(0, 11, n), np.arange(12), template) for n in range(12, 21)]
        best = [max(np.correlate(x, each, "valid").max() / np.linalg.norm(each) for each in stretched) for x in data.test_inputs]
        scores.append(best)
    sliding = float((np.argmax(scores, axis=0) == data.test_targets).mean())
    weights = np.linalg.lstsq(data.inputs, np.eye(10)[data.targets], rcond=None)[0]
    linear = float(((data.test_inputs @ weights).argmax(axis=1) == data.test_targets).mean())
    assert sliding > 0.6 > 0.4 > linear > 0.1


@pytest.mark.parametrize(
    ("options", "message"), [({"num": 0}, "num must"), ({"num_test": 0}, "num_test"), ({"noise": -1.0}, "noise")]
)
def test_option_outside_its_range_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        series_like(**options)
