"""For all tests."""

import signal


def pytest_configure():
    """What is started in the background ignores SIGINT, and so would all that the tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
