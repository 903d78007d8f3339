"""Signals end what is inside, and nothing cuts its clearing away short."""

import os
import signal

import pytest

from planner.validate.signals import Ended, daemons_start, ended_by_signals, undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_raises_once_and_the_handlers_come_back(number):
    before = signal.getsignal(number)

    def run():
        with ended_by_signals():
            try:
                os.kill(os.getpid(), number)
            finally:
                with undisturbed():
                    os.kill(os.getpid(), number)

    with pytest.raises(Ended, match=number.name) as caught:
        run()
    assert caught.value.number == number
    assert signal.getsignal(number) is before


def test_handlers_that_are_left_behind_are_put_away():
    with ended_by_signals():
        ours = signal.getsignal(signal.SIGTERM)
        with daemons_start():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is ours
