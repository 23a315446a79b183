"""The time that a case may take, and how its peers share it. Standard library only."""

import contextlib
import signal
import time


class TimeUp(Exception):
    """Something was not ready in its time."""


class Budget:
    """`seconds` from now on; the clock is an argument for the tests."""

    def __init__(self, seconds, clock=time.monotonic):
        self.clock = clock
        self.end = clock() + seconds

    def left(self):
        """Seconds, less than none when it is spent."""
        return self.end - self.clock()

    def share(self, peers):
        """The part for the next of `peers` that are still to be measured."""
        return Budget(self.left() / peers, self.clock)


@contextlib.contextmanager
def within(seconds):
    """Raises `TimeUp` in what runs inside when `seconds` have passed; a call into native code is let finish."""
    if seconds <= 0:
        raise TimeUp("no time is left")

    why = TimeUp(f"not ready in {seconds:.0f} s")
    rung = []

    def ring(*_):
        rung.append(True)
        raise why

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Exception as error:
        # A compiler makes an error of its own of it.
        if rung and error is not why:
            raise why from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
