"""What has failed is left alone, and tried again with one call."""

import pytest

from appliance.embedding.breaker import Breaker


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(failures=3, pause=30, clock=clock)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        assert breaker.allows()
        breaker.failed()


def test_it_is_closed_until_the_third_failure_in_a_row(breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.succeeded()
    fail(breaker, 2)
    assert breaker.closed()
    assert breaker.retry_after == 0

    fail(breaker, 1)

    assert not breaker.closed()
    assert not breaker.allows()
    assert breaker.retry_after == 30


def test_after_the_pause_one_call_is_let_through_and_decides(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 29.9
    assert not breaker.allows()
    clock.now += 0.1

    assert breaker.ready()
    assert breaker.ready(), "looking changes nothing"
    assert breaker.allows()
    assert not breaker.allows()
    assert not breaker.closed()
    breaker.succeeded()

    assert breaker.closed()
    assert breaker.allows()
    assert breaker.allows()


def test_a_probe_that_fails_opens_it_again(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 30
    fail(breaker, 1)

    assert not breaker.allows()
    assert breaker.retry_after == 30


def test_a_probe_whose_caller_left_makes_room_for_another(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 30
    assert breaker.allows()

    breaker.abandoned()

    assert breaker.allows()


def test_a_probe_that_is_never_heard_of_is_given_up_after_a_pause(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 30
    assert breaker.allows()
    clock.now += 29
    assert not breaker.allows()
    clock.now += 1

    assert breaker.allows()


def test_a_call_that_began_before_it_opened_does_not_lengthen_the_pause(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 20

    breaker.failed()

    assert breaker.retry_after == 10


def test_it_opens_at_once_for_as_long_as_was_said(breaker: Breaker, clock: Clock) -> None:
    breaker.failed(retry_after=7)

    assert not breaker.allows()
    assert breaker.retry_after == 7
    clock.now += 7
    assert breaker.allows()
