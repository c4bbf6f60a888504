"""The cheapest key exchange comes first, and a server that speaks only another one is still reached, and still verified."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pycurl
import pytest
import trustme

from monitor.clock import SystemClock
from monitor.probes.http import CurlProbe
from monitor.probes.http_tls import orders_groups
from monitor.probes_contract import HttpAnswer, HttpFailure, HttpReason, HttpRequest

SERVER = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.maximum_version = ssl.TLSVersion[sys.argv[2]]
context.load_cert_chain(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    raw = listener.accept()[0]
    try:
        with context.wrap_socket(raw, server_side=True) as spoken:
            spoken.recv(4096)
            spoken.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
    except OSError:
        raw.close()
"""
ONLY_GROUPS = "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = every\n[every]\nGroups = {}\n"


@pytest.fixture
async def probe() -> AsyncIterator[CurlProbe]:
    probe = CurlProbe(SystemClock())
    yield probe
    await probe.close()


@contextmanager
def speaking_only(groups: str, folder: Path, authority: trustme.CA, version: str = "TLSv1_3") -> Iterator[str]:
    """An HTTPS server that agrees to nothing but these groups; it runs on the OpenSSL that came with libcurl, when one did."""
    (folder / "openssl.cnf").write_text(ONLY_GROUPS.format(groups))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    bundled = Path(pycurl.__file__).parents[1] / "pycurl.libs"
    for name in ("libssl", "libcrypto"):
        for library in bundled.glob(f"{name}-*.so.3"):
            (folder / f"{name}.so.3").symlink_to(library)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder / "server.pem"), version],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPENSSL_CONF": str(folder / "openssl.cnf"), "LD_LIBRARY_PATH": str(folder)},
    )
    assert process.stdout
    try:
        yield f"https://127.0.0.1:{process.stdout.readline().strip()}/"
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


@pytest.mark.parametrize(
    ("groups", "version"),
    [
        ("X25519", "TLSv1_3"),
        ("P-256", "TLSv1_3"),
        ("P-384", "TLSv1_3"),
        ("P-521", "TLSv1_3"),
        ("X448", "TLSv1_3"),
        ("ffdhe2048", "TLSv1_3"),
        pytest.param(
            *("X25519MLKEM768", "TLSv1_3"),
            marks=pytest.mark.skipif(not orders_groups(pycurl.version), reason="this libcurl's OpenSSL knows no hybrid exchange"),
        ),
        ("P-256", "TLSv1_2"),
        ("P-384", "TLSv1_2"),
        ("P-521", "TLSv1_2"),
    ],
)
async def test_a_server_of_one_group_is_reached_and_verified(probe: CurlProbe, groups: str, version: str, tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), tmp_path / "stranger.pem"
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(stranger))
    with speaking_only(groups, tmp_path, authority, version) as url:
        known = await probe.fetch(HttpRequest(url, ca_file=str(tmp_path / "ca.pem")))
        unknown = await probe.fetch(HttpRequest(url, ca_file=str(stranger)))
    assert isinstance(known, HttpAnswer), known
    assert known.tls_days_left is not None
    assert isinstance(unknown, HttpFailure), unknown
    assert unknown.reason is HttpReason.TLS_UNTRUSTED


@pytest.mark.parametrize(
    ("version", "orders"),
    [
        ("PycURL/7.49.0 libcurl/8.23.0 OpenSSL/3.6.5 zlib/1.2.13", True),
        ("PycURL/7.45.2 libcurl/7.88.1 OpenSSL/3.0.19 zlib/1.2.13", False),
        ("PycURL/7.45.2 libcurl/7.88.1 GnuTLS/3.7.9 zlib/1.2.13", False),
        ("PycURL/7.49.0 libcurl/8.23.0 OpenSSL/4.0.0 zlib/1.2.13", True),
    ],
)
def test_the_order_is_left_alone_where_the_default_is_cheap_or_the_words_are_others(version: str, orders: bool) -> None:
    assert orders_groups(version) is orders
