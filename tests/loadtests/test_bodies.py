"""Every family of bodies makes requests that can be sent whole."""

import json
import random

import pytest

from loadtests.bodies import FAMILIES
from loadtests.cases import Ground

GROUND = Ground([f"i{n:02d}" for n in range(1, 21)], headers={"authorization": "Bearer key"})


def test_what_is_valid_is_json_with_the_key():
    for number in range(50):
        (raw,) = FAMILIES["valid"][0](random.Random(number), GROUND).parts
        head, _, body = raw.partition(b"\r\n\r\n")
        assert b"authorization: Bearer key" in head
        json.loads(body)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_wrong_is_in_the_body_and_the_head_says_how_long_it_is(name):
    for number in range(25):
        head, _, body = b"".join(FAMILIES[name][0](random.Random(number), GROUND).parts).partition(b"\r\n\r\n")
        said = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        assert [int(line.split(b":")[1]) for line in said] in ([len(body)], [])
