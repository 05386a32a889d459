"""One setting for all property tests: the same examples in every run, no time limit for slow machines."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "replay",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("replay")
