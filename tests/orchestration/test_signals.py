"""SIGTERM as Ctrl-C."""

from __future__ import annotations

import signal
import threading

import pytest

from vader_ray.orchestration.signals import restore_sigterm_handler, sigterm_deferred, sigterm_interrupts


@pytest.mark.parametrize("sigint", [signal.default_int_handler, signal.SIG_IGN])
def test_the_first_sigterm_interrupts_and_others_do_nothing(sigint: signal.Handlers) -> None:
    """Also where Ctrl-C is ignored, as in the background of a script."""
    before = signal.getsignal(signal.SIGTERM)
    before_sigint = signal.signal(signal.SIGINT, sigint)
    try:
        with sigterm_interrupts():
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as `ray.init` replaces it
            restore_sigterm_handler()
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before_sigint)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_deferred_sigterm_is_reported_and_the_second_one_interrupts() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with sigterm_interrupts(), sigterm_deferred() as is_wanted:
            assert not is_wanted()
            signal.raise_signal(signal.SIGTERM)
            assert is_wanted()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)


def test_nothing_is_deferred_without_a_handler() -> None:
    with sigterm_deferred() as is_wanted:
        assert not is_wanted()


def test_without_a_surrounding_context_the_handler_stays() -> None:
    before = signal.getsignal(signal.SIGTERM)
    restore_sigterm_handler()
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_changes_no_handler() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), list[object]()

    def run() -> None:
        with sigterm_interrupts():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
