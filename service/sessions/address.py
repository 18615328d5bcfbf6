"""Where a Redis is, how to get in, and whom to trust there: what a `redis:` URL says.

Several servers may be named where they are the first ones to ask for the rest of a cluster.
"""

import ssl
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from service.errors import ConfigurationError

PORT = 6379
OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs")
_FORM = "a Redis URL reads redis://user:password@host:port/db"


@dataclass(frozen=True, slots=True)
class Address:
    """One server; `tls` is None where bytes travel in the clear."""

    host: str
    port: int
    db: int = 0
    username: str | None = None
    password: str | None = None
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return f"Redis at {self.host}:{self.port}"  # never the password

    def at(self, host: str, port: int) -> "Address":
        """Another server of the same cluster, to be entered in the same way."""
        return Address(host, port, self.db, self.username, self.password, self.tls)


def addresses(url: str) -> list[Address]:
    """The servers that a URL names: one, or several with commas between them.

    Raises:
        ConfigurationError: a URL without its parts, an option that is not known, or a certificate that is not there.
    """
    parts = urlsplit(url)
    credentials, _, servers = parts.netloc.rpartition("@")
    username, _, password = (unquote(part) for part in credentials.partition(":"))
    db = parts.path.strip("/") or "0"
    if not db.isdigit():
        raise ConfigurationError(f"{db!r} is not the number of a database; {_FORM}")
    tls = _context(dict(parse_qsl(parts.query)), is_asked=parts.scheme.startswith("rediss"))
    found = []
    for server in servers.split(","):
        try:
            place = urlsplit(f"//{server}")
            found.append(
                Address(
                    place.hostname or "localhost", place.port or PORT, int(db), username or None, password or None, tls
                )
            )
        except ValueError as error:
            raise ConfigurationError(f"{error}; {_FORM}") from error
    return found


def _context(options: dict[str, str], *, is_asked: bool) -> ssl.SSLContext | None:
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown or (options and not is_asked):
        name = unknown[0] if unknown else next(iter(options))
        raise ConfigurationError(f"{name!r} is no option here; rediss:// URLs take {', '.join(OPTIONS)}")
    if not is_asked:
        return None
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except OSError as error:  # an SSLError is one, too
        raise ConfigurationError(f"a certificate of the session store's URL cannot be read: {error}") from error
    context.check_hostname = options.get("ssl_check_hostname", "true").lower() not in ("false", "0", "no")
    if options.get("ssl_cert_reqs", "required") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
