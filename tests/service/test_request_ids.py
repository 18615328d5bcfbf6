import pytest

from service.request_ids import request_id


def test_a_decent_id_of_the_caller_is_kept():
    assert request_id([(b"host", b"x"), (b"x-request-id", b"abc-1.2:3_4")]) == "abc-1.2:3_4"


@pytest.mark.parametrize("given", [b"", b"a b", b"x" * 129, "ä".encode(), b"a\r\nb"])
def test_any_other_is_replaced(given):
    assert len(request_id([(b"x-request-id", given)])) == 32


def test_no_two_are_the_same():
    assert len({request_id() for _ in range(1000)}) == 1000
