"""Whose certificate it is: others' mistakes with names, over STARTTLS and over TLS from the first byte.

The judge has its own table; here it is seen that nothing is said to who has not proved who he is.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import attrs
from cryptography import x509

from mailcache import Credentials, TLSPolicy
from mailcache.testing import Authority, Issued, self_signed
from tests.helpers import PORT, authority, verifying
from tests.security.callers import MEMORY, SharingCase, to
from tests.trust.crafted import crafted

NAME, ADDRESS, IDN = "mx.example.com", "127.0.0.1", "xn--l8j.example.com"
STRANGER = Authority("stranger")


def dns(*names: str, common_name: str = "nobody") -> Issued:
    return crafted(authority(), [x509.DNSName(name) for name in names], common_name)


def address(*texts: str) -> Issued:
    return crafted(authority(), [x509.IPAddress(ipaddress.ip_address(text)) for text in texts])


def common(name: str) -> Issued:
    """With a common name and nothing else."""
    return crafted(authority(), None, name)


SECURE = TLSPolicy("secure", ca_file=verifying().ca_file)
BELOW = verifying(match=(".example.com",))


@attrs.frozen
class Row:
    who: str
    host: str
    shown: Issued
    good: bool
    policy: TLSPolicy = attrs.Factory(verifying)


ROWS: Sequence[Row] = (
    Row("right", NAME, dns(NAME), True),
    Row("case", "MX.Example.Com", dns("mX.eXAMPLE.com"), True),
    Row("final dot, asked for", f"{NAME}.", dns(NAME), True),
    Row("final dot, shown", NAME, dns(f"{NAME}."), False),
    Row("CVE-2009-2417 (curl): NUL in the common name", NAME, common(f"{NAME}\0.evil.test"), False),
    Row("NUL in a name", NAME, dns(f"{NAME}\0.evil.test"), False),
    Row("common name alone", NAME, common(NAME), False),
    Row("common name besides another", NAME, dns("mx.example.net", common_name=NAME), False),
    Row("CVE-2014-2522, CVE-2024-2466 (curl): an address is not checked", ADDRESS, dns("evil.test"), False),
    Row("an address, right", ADDRESS, address(ADDRESS), True),
    Row("an address, another's", ADDRESS, address("127.0.0.2"), False),
    Row("an address as a name", ADDRESS, dns(ADDRESS), False),
    Row("an address as a common name", ADDRESS, common(ADDRESS), False),
    Row("CVE-2014-0139 (curl): a wildcard for an address", ADDRESS, dns("*.0.0.1"), False),
    Row("an address mapped into IPv6", ADDRESS, address(f"::ffff:{ADDRESS}"), False),
    Row("a name's address", NAME, address(ADDRESS), False),
    Row("wildcard", NAME, dns("*.example.com"), True),
    Row("wildcard, two labels", "a.mx.example.com", dns("*.example.com"), False),
    Row("wildcard, no label", "example.com", dns("*.example.com"), False),
    Row("wildcard of all", NAME, dns("*"), False),
    Row("wildcard in the middle", NAME, dns("mx.*.com"), False),
    Row("wildcard in a label", NAME, dns("m*.example.com"), False),
    Row("CVE-2023-28321 (curl): a wildcard in an international label", IDN, dns("x*.example.com"), False),
    Row("the same behind its mark", IDN, dns("xn--*.example.com"), False),
    Row("wildcard for an international label", IDN, dns("*.example.com"), False),
    Row("wildcard below an international label", "mx.xn--l8j.example", dns("*.xn--l8j.example"), True),
    Row("longer", NAME, dns(f"{NAME}.evil.test"), False),
    Row("shorter", NAME, dns("example.com"), False),
    Row("look-alike", NAME, dns("mx.examp1e.com"), False),
    Row("CVE-2019-12855: no check behind STARTTLS", NAME, self_signed((NAME,)), False),
    Row("unknown authority", NAME, STRANGER.issue((NAME,), ()), False),
    Row("secure, host", NAME, dns(NAME), True, SECURE),
    Row("secure, other host", NAME, dns("mx.example.net"), False, SECURE),
    Row("below, host", "other.test", dns(NAME), True, BELOW),
    Row("below, domain", "other.test", dns("example.com"), False, BELOW),
    Row("below, look-alike", "other.test", dns("mx.badexample.com"), False, BELOW),
    Row("encrypt, whoever", NAME, self_signed(("evil.test",)), True, TLSPolicy("encrypt")),
)  # fmt: skip


class Names(SharingCase):
    """Nothing under TLS to who is not the right one, not even EHLO; and what he has shown is not kept."""

    def check(self, row: Row, implicit: bool) -> None:
        more = {"protocol": "smtps"} if implicit else {}
        server = {"certificate": row.shown, "implicit_tls": implicit, "users": {"anne": "secret"}}
        where = to(f"[{row.host}]:{PORT}", tls=row.policy, credentials=Credentials("anne", "secret"), **more)
        with self.callers(MEMORY, server=server) as callers:
            callers.bed.reactor.hosts[row.host.lower().rstrip(".")] = [ADDRESS]
            for _ in range(2):
                value = callers.deliver(0, where)
                if row.good:
                    self.sent(value)
                else:
                    self.assertEqual((value.phase, callers.bed.counts()), ("trust", (0, 0, 0, 0)), value)
            self.assertEqual(len(callers.connections), 1 if row.good else 2)
            for record in callers.connections:
                self.assertTrue(record.tls)
                self.assertEqual(record.user, "anne" if row.good else None)
                self.assertEqual(len(record.messages), 2 if row.good else 0)
                if not row.good:
                    in_clear = [] if implicit else ["EHLO [127.0.0.1]", "STARTTLS"]
                    self.assertEqual(record.commands, in_clear)

    def test_behind_starttls(self) -> None:
        self.assertGreaterEqual(len(ROWS), 37)
        for row in ROWS:
            with self.about(row.who, row.host):
                self.check(row, implicit=False)

    def test_from_the_first_byte(self) -> None:
        for row in ROWS:
            with self.about(row.who, row.host):
                self.check(row, implicit=True)
