"""What a Redis URL says."""

import ssl

import pytest

from service.errors import ConfigurationError
from service.sessions.address import Address, addresses


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", [Address("localhost", 6379)]),
        ("redis://h", [Address("h", 6379)]),
        ("redis://h:1/2", [Address("h", 1, 2)]),
        ("redis://:p%40ss@h:1", [Address("h", 1, 0, None, "p@ss")]),
        ("redis://me:a:b@h/", [Address("h", 6379, 0, "me", "a:b")]),
        ("redis://[::1]:7/0", [Address("::1", 7)]),
        ("redis+cluster://me:p@a:1,b:2", [Address("a", 1, 0, "me", "p"), Address("b", 2, 0, "me", "p")]),
    ],
)
def test_a_url_says_where_and_how_to_get_in(url, expected):
    assert addresses(url) == expected


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://h:port/0", "a Redis URL reads"),
        ("redis://h:70000", "a Redis URL reads"),
        ("redis://h/db", "'db' is not the number of a database"),
        ("redis://h?ssl_ca_certs=x", "is no option here; rediss://"),
        ("rediss://h?timeout=5", "'timeout' is no option here"),
        ("rediss://h?ssl_ca_certs=/not/there.pem", "cannot be read"),
        ("rediss://h?ssl_certfile=/not/there.pem", "cannot be read"),
    ],
)
def test_a_url_that_cannot_mean_anything_is_refused(url, reason):
    with pytest.raises(ConfigurationError, match=reason):
        addresses(url)


def test_tls_checks_who_answers_unless_told_otherwise():
    (checked,), (named,), (anyone,) = (
        addresses(f"rediss://h{options}") for options in ("", "?ssl_check_hostname=false", "?ssl_cert_reqs=none")
    )
    assert checked.tls is not None
    assert named.tls is not None
    assert anyone.tls is not None
    assert (checked.tls.verify_mode, checked.tls.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (named.tls.verify_mode, named.tls.check_hostname) == (ssl.CERT_REQUIRED, False)
    assert (anyone.tls.verify_mode, anyone.tls.check_hostname) == (ssl.CERT_NONE, False)


def test_what_is_shown_of_an_address_holds_no_password():
    (address,) = addresses("redis://me:hunter2@h:1")
    assert str(address) == "Redis at h:1"
    assert address.at("other", 2) == Address("other", 2, 0, "me", "hunter2")
