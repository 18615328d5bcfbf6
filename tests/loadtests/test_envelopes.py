"""Every family of envelopes makes something that can be sent."""

import random

from loadtests.cases import Ground
from loadtests.envelopes import FAMILIES

GROUND = Ground([f"i{n:02d}" for n in range(1, 21)], headers={"authorization": "Bearer key"})


def test_what_leaves_a_connection_in_doubt_has_one_of_its_own():
    for name in ("framing", "halves", "slow", "pipelines", "noise"):
        assert all(FAMILIES[name][0](random.Random(number), GROUND).is_alone for number in range(25)), name
