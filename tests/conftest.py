"""What all tests share."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "planner",
    deadline=None,  # no timed assertions: the machine may be busy
    derandomize=True,  # a red run says the same thing twice
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("planner")
