"""For all tests."""

import signal


def pytest_configure() -> None:
    """Tests send Ctrl-C to programs that they start, and a shell's background job would let these inherit that it is
    ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
