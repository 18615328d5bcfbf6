import random

from service.timing import Timings


class Ticking:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.5
        return self.now


def test_a_stage_entered_twice_adds_up():
    timings = Timings(Ticking())
    with timings("encode"):
        pass
    with timings("encode"):
        pass
    timings.add("queue", 0.0012346)
    assert timings.seconds == {"encode": 1.0, "queue": 0.0012346}
    assert timings.milliseconds() == {"encode": 1000.0, "queue": 1.235}


def test_a_stage_that_raises_is_timed_all_the_same():
    timings = Timings(Ticking())
    try:
        with timings("state"):
            raise KeyError
    except KeyError:
        pass
    assert timings.seconds == {"state": 0.5}


def test_milliseconds_are_what_rounding_to_the_microsecond_gives():
    chance = random.Random(1)
    timings = Timings(Ticking())
    for stage in range(10_000):
        timings.add(str(stage), 10 ** chance.uniform(-7, 2))
    rounded = {stage: round(seconds * 1000, 3) for stage, seconds in timings.seconds.items()}
    assert timings.milliseconds() == rounded
