"""The one judge: policies, certificates as real handshakes show them, and the verdict on each pair."""

from __future__ import annotations

import time
from functools import cache as once
from ipaddress import ip_address

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from mailcache import TLSPolicy
from mailcache.testing import Authority, Issued, self_signed
from mailcache.trust.evidence import CLEAR, Evidence
from mailcache.trust.judge import judge
from mailcache.trust.policy import Requirement
from tests.helpers import evidence_of
from tests.trust.crafted import DAY, NOW, crafted, intermediate

OURS, THEIRS = Authority("ours"), Authority("theirs")
HOST, DOMAIN = "mx.example.com", "example.com"


def dns(*names: str) -> Issued:
    """A certificate with just these names, odd ones too."""
    return crafted(OURS, [x509.DNSName(name) for name in names])


CERTIFICATES: dict[str, Issued] = {
    "right": OURS.issue((HOST,), ()),
    "domain": OURS.issue((DOMAIN,), ()),
    "several": OURS.issue(("a.example.com", "b.example.net", HOST), ("192.0.2.1",)),
    "upper case": dns("MX.Example.COM"),
    "other": OURS.issue(("mx.example.net",), ()),
    "longer": OURS.issue(("mx.example.com.evil.test",), ()),
    "shorter": OURS.issue(("example.com",), ()),
    "lookalike": OURS.issue(("mx.badexample.com",), ()),
    "wildcard": OURS.issue(("*.example.com",), ()),
    "deep wildcard": OURS.issue(("*.mx.example.com",), ()),
    "wildcard of all": dns("*"),
    "wildcard of com": dns("*.com"),
    "wildcard inside": dns("mx.*.com"),
    "wildcard in a label": dns("m*.example.com"),
    "two wildcards": dns("*.*.com"),
    "address": OURS.issue((), ("192.0.2.1", "2001:db8::1")),
    "address as a name": dns("192.0.2.1"),
    "address as a name, and right": dns("192.0.2.1", HOST),
    "NUL": dns("mx.example.com\0.evil.test"),
    "NUL before": dns("evil.test\0.example.com"),
    "space": dns(" mx.example.com"),
    "line end": dns("mx.example.com\n"),
    "final dot": dns("mx.example.com."),
    "leading dot": dns(".example.com"),
    "empty": dns(""),
    "odd ones, and right": dns("", "*", "a\0b", "mx..com", ".example.com", HOST),
    "as URI": crafted(OURS, [x509.UniformResourceIdentifier("https://mx.example.com")]),
    "as mail address": crafted(OURS, [x509.RFC822Name("postmaster@mx.example.com")]),
    "URI with a port, and right": crafted(
        OURS, [x509.UniformResourceIdentifier("https://a.test:443/b:c"), x509.DNSName(HOST)]
    ),
    "common name only": crafted(OURS, None, common_name=HOST),
    "common name with other": crafted(OURS, [x509.DNSName("mx.example.net")], common_name=HOST),
    "expired": OURS.issue((HOST,), (), NOW - 9 * DAY, NOW - DAY),
    "not yet valid": OURS.issue((HOST,), (), NOW + DAY, NOW + 9 * DAY),
    "for a client": OURS.issue((HOST,), (), client=True),
    "self-signed": self_signed((HOST,), ()),
    "unknown authority": THEIRS.issue((HOST,), ()),
    "under an intermediate": crafted(OURS, [x509.DNSName(HOST)], under=intermediate(OURS, 50)),
    "under an expired intermediate": crafted(OURS, [x509.DNSName(HOST)], under=intermediate(OURS, -0.5)),
    "international": OURS.issue(("xn--bcher-kva.example.com",), ()),
}


@once
def shown(certificate: str, servername: str | None = HOST) -> Evidence:
    """What a server with this certificate shows to who trusts our authority."""
    return evidence_of(CERTIFICATES[certificate], OURS.certificate_pem, servername)


def print_of(certificate: str) -> str:
    return CERTIFICATES[certificate].digest().hex()


def key_print_of(certificate: str) -> str:
    return shown(certificate).public_key


YES, NO = True, False
WRONG_NAME, NOT_TRUSTED = "the certificate is for ", "the certificate is not trusted: "
VERIFY, SECURE = TLSPolicy("verify"), TLSPolicy("secure")


def matching(*names: str, level: str = "verify") -> TLSPolicy:
    return TLSPolicy(level, match=names)


def printed(*prints: str) -> TLSPolicy:
    return TLSPolicy("fingerprint", fingerprints=prints)


BY_NAME: tuple[tuple[TLSPolicy, str, str, str, bool, str], ...] = (
    # policy, next hop, host, certificate, verdict, reason
    (VERIFY, DOMAIN, HOST, "right", YES, "verified for mx.example.com"),
    (VERIFY, DOMAIN, "MX.Example.Com", "right", YES, "verified for mx.example.com"),
    (VERIFY, DOMAIN, "mx.example.com.", "right", YES, "verified for mx.example.com"),
    (VERIFY, DOMAIN, HOST, "several", YES, "verified for mx.example.com"),
    (VERIFY, DOMAIN, HOST, "upper case", YES, "verified for mx.example.com"),
    (VERIFY, DOMAIN, HOST, "wildcard", YES, "verified for mx.example.com"),
    (VERIFY, DOMAIN, HOST, "under an intermediate", YES, "verified for mx.example.com"),
    (VERIFY, DOMAIN, HOST, "address as a name, and right", YES, "verified for mx.example.com"),
    (VERIFY, DOMAIN, HOST, "odd ones, and right", YES, "verified for mx.example.com"),
    (VERIFY, DOMAIN, HOST, "URI with a port, and right", YES, "verified for mx.example.com"),
    (VERIFY, DOMAIN, HOST, "other", NO, WRONG_NAME + "mx.example.net, wanted is mx.example.com"),
    (VERIFY, DOMAIN, HOST, "domain", NO, WRONG_NAME + "example.com"),
    (VERIFY, DOMAIN, HOST, "longer", NO, WRONG_NAME),
    (VERIFY, DOMAIN, HOST, "lookalike", NO, WRONG_NAME),
    (VERIFY, DOMAIN, HOST, "deep wildcard", NO, WRONG_NAME),
    (VERIFY, DOMAIN, HOST, "wildcard of all", NO, WRONG_NAME + "no name at all"),
    (VERIFY, DOMAIN, HOST, "wildcard of com", NO, WRONG_NAME + "no name at all"),
    (VERIFY, DOMAIN, HOST, "wildcard inside", NO, WRONG_NAME + "no name at all"),
    (VERIFY, DOMAIN, HOST, "wildcard in a label", NO, WRONG_NAME),
    (VERIFY, DOMAIN, HOST, "two wildcards", NO, WRONG_NAME + "no name at all"),
    (VERIFY, DOMAIN, DOMAIN, "wildcard", NO, WRONG_NAME),
    (VERIFY, DOMAIN, "a.b.example.com", "wildcard", NO, WRONG_NAME),
    (VERIFY, DOMAIN, "xn--bcher-kva.example.com", "international", YES, "verified for xn--bcher-kva.example.com"),
    (VERIFY, DOMAIN, "xn--bcher-kva.example.com", "wildcard", NO, WRONG_NAME),
    (VERIFY, DOMAIN, "b\xfccher.example.com", "international", NO, WRONG_NAME),
    (VERIFY, DOMAIN, HOST, "NUL", NO, WRONG_NAME + "no name at all"),
    (VERIFY, DOMAIN, HOST, "NUL before", NO, WRONG_NAME + "no name at all"),
    (VERIFY, DOMAIN, HOST, "space", NO, WRONG_NAME + "no name at all"),
    (VERIFY, DOMAIN, HOST, "line end", NO, WRONG_NAME + "no name at all"),
    (VERIFY, DOMAIN, HOST, "final dot", NO, WRONG_NAME + "no name at all"),
    (VERIFY, DOMAIN, HOST, "empty", NO, WRONG_NAME + "no name at all"),
    (VERIFY, DOMAIN, "", "empty", NO, WRONG_NAME),
    (VERIFY, DOMAIN, HOST, "as URI", NO, WRONG_NAME + "no name at all"),
    (VERIFY, DOMAIN, HOST, "as mail address", NO, WRONG_NAME + "no name at all"),
    (VERIFY, DOMAIN, HOST, "common name only", NO, WRONG_NAME + "no name at all"),
    (VERIFY, DOMAIN, HOST, "common name with other", NO, WRONG_NAME + "mx.example.net"),
    (VERIFY, DOMAIN, HOST, "expired", NO, NOT_TRUSTED + "cert has expired"),
    (VERIFY, DOMAIN, HOST, "not yet valid", NO, NOT_TRUSTED + "cert not yet valid"),
    (VERIFY, DOMAIN, HOST, "under an expired intermediate", NO, NOT_TRUSTED + "cert has expired"),
    (VERIFY, DOMAIN, HOST, "for a client", NO, NOT_TRUSTED + "invalid purpose"),
    (VERIFY, DOMAIN, HOST, "self-signed", NO, NOT_TRUSTED + "depth zero self signed cert"),
    (VERIFY, DOMAIN, HOST, "unknown authority", NO, NOT_TRUSTED + "self signed cert in chain"),
    (VERIFY, "192.0.2.1", "192.0.2.1", "address", YES, "verified for 192.0.2.1"),
    (VERIFY, "192.0.2.1", "192.0.2.1", "several", YES, "verified for 192.0.2.1"),
    (VERIFY, "192.0.2.2", "192.0.2.2", "address", NO, WRONG_NAME + "192.0.2.1, 2001:db8::1, wanted is 192.0.2.2"),
    (VERIFY, "2001:db8::1", "2001:db8::1", "address", YES, "verified for 2001:db8::1"),
    (VERIFY, "2001:db8::1%lo", "2001:db8::1%lo", "address", YES, "verified for 2001:db8::1"),
    (VERIFY, "192.0.2.1", "192.0.2.1", "address as a name", NO, WRONG_NAME + "no name at all"),
    (VERIFY, "192.0.2.1", "192.0.2.1", "right", NO, WRONG_NAME + "mx.example.com, wanted is 192.0.2.1"),
    (VERIFY, DOMAIN, HOST, "address", NO, WRONG_NAME),
    (matching("mx.example.net"), DOMAIN, HOST, "other", YES, "verified for mx.example.net"),
    (matching("mx.example.net"), DOMAIN, HOST, "right", NO, WRONG_NAME + "mx.example.com, wanted is mx.example.net"),
    (matching("a.test", HOST), DOMAIN, "x.test", "right", YES, "verified for mx.example.com"),
    (matching(".example.com"), DOMAIN, HOST, "right", YES, "verified for .example.com"),
    (matching(".example.com"), DOMAIN, HOST, "wildcard", YES, "verified for .example.com"),
    (matching(".example.com"), DOMAIN, HOST, "deep wildcard", YES, "verified for .example.com"),
    (matching(".example.com"), DOMAIN, HOST, "domain", NO, WRONG_NAME),
    (matching(".example.com"), DOMAIN, HOST, "lookalike", NO, WRONG_NAME),
    (matching(".example.com"), DOMAIN, HOST, "longer", NO, WRONG_NAME),
    (matching(".example.com"), DOMAIN, HOST, "leading dot", NO, WRONG_NAME + "no name at all"),
    (matching(".example.com"), DOMAIN, HOST, "NUL before", NO, WRONG_NAME + "no name at all"),
    (matching(".example.com"), DOMAIN, HOST, "unknown authority", NO, NOT_TRUSTED),
    (matching(".com"), DOMAIN, HOST, "wildcard of com", NO, WRONG_NAME + "no name at all"),
    (matching("2001:db8:0::1"), DOMAIN, HOST, "address", YES, "verified for 2001:db8::1"),
    (SECURE, DOMAIN, "x.evil.test", "right", YES, "verified for .example.com"),
    (SECURE, DOMAIN, "x.evil.test", "domain", YES, "verified for example.com"),
    (SECURE, DOMAIN, "x.evil.test", "wildcard", YES, "verified for .example.com"),
    (SECURE, DOMAIN, "mx.example.net", "other", NO, WRONG_NAME + "mx.example.net, wanted is example.com or .exam"),
    (SECURE, DOMAIN, "x.evil.test", "longer", NO, WRONG_NAME),
    (SECURE, DOMAIN, "x.evil.test", "lookalike", NO, WRONG_NAME),
    (SECURE, HOST, HOST, "right", YES, "verified for mx.example.com"),
    (SECURE, HOST, HOST, "domain", NO, WRONG_NAME),
    (SECURE, "192.0.2.1", "192.0.2.1", "address", YES, "verified for 192.0.2.1"),
    (SECURE, DOMAIN, HOST, "self-signed", NO, NOT_TRUSTED),
    (SECURE, DOMAIN, HOST, "expired", NO, NOT_TRUSTED),
    (SECURE, "/run/l\xe4mtp", "localhost", "right", NO, WRONG_NAME),
    (matching("mx.example.net", level="secure"), DOMAIN, HOST, "other", YES, "verified for mx.example.net"),
    (matching("mx.example.net", level="secure"), DOMAIN, HOST, "right", NO, WRONG_NAME),
    (printed(print_of("right")), DOMAIN, HOST, "right", YES, "fingerprint"),
    (printed("ab" * 32, print_of("right")), DOMAIN, HOST, "right", YES, "fingerprint"),
    (printed(key_print_of("right")), DOMAIN, HOST, "right", YES, "fingerprint"),
    (printed(print_of("self-signed")), DOMAIN, HOST, "self-signed", YES, "fingerprint"),
    (printed(print_of("expired")), DOMAIN, HOST, "expired", YES, "fingerprint"),
    (printed(print_of("other")), DOMAIN, HOST, "other", YES, "fingerprint"),
    (printed(print_of("right")), DOMAIN, HOST, "other", NO, "neither the certificate nor its public key has one"),
    (printed(OURS.certificate.fingerprint(OURS.certificate.signature_hash_algorithm).hex()), DOMAIN, HOST, "right", NO,
     "neither the certificate"),
)  # fmt: skip


class Judging(SynchronousTestCase):
    def now(self) -> float:
        return time.time()

    def test_names_chains_and_fingerprints(self) -> None:
        """Each policy with each certificate, at the handshake and again when the session is shared."""
        self.assertGreater(len(BY_NAME), 40)
        for policy, next_hop, host, certificate, good, reason in BY_NAME:
            requirement = policy.resolve(next_hop, host)
            servername = requirement.servername
            evidence = shown(certificate, servername if servername and servername.isascii() else None)
            if evidence.servername != servername:
                requirement = Requirement(requirement.level, requirement.names, requirement.fingerprints, None)
            for _ in range(2):
                verdict = judge(requirement, evidence, self.now())
                self.assertEqual(verdict.ok, good, f"{policy}, {next_hop}, {host}, {certificate}: {verdict}")
                self.assertTrue(verdict.reason.startswith(reason), f"{verdict.reason!r} for {reason!r}")

    def test_levels_that_prove_nothing(self) -> None:
        """The certificate is no matter; whether there is TLS is."""
        for level, certificate, good in (
            ("none", None, YES),
            ("none", "right", NO),
            ("may", None, YES),
            ("may", "right", YES),
            ("may", "self-signed", YES),
            ("may", "empty", YES),
            ("encrypt", None, NO),
            ("encrypt", "right", YES),
            ("encrypt", "self-signed", YES),
            ("encrypt", "expired", YES),
            ("encrypt", "other", YES),
        ):
            evidence = CLEAR if certificate is None else shown(certificate)
            for requirement in (
                TLSPolicy(level).resolve(DOMAIN, HOST),
                TLSPolicy(level, servername="other.test").resolve(DOMAIN, HOST),
            ):
                self.assertEqual(judge(requirement, evidence, self.now()).ok, good, f"{level}, {certificate}")

    def test_clear_text_proves_nothing(self) -> None:
        for policy in (VERIFY, SECURE, printed("ab" * 32), TLSPolicy("encrypt")):
            verdict = judge(policy.resolve(DOMAIN, HOST), CLEAR, self.now())
            self.assertEqual((verdict.ok, verdict.reason[:5]), (NO, "level"))
            self.assertIn("in clear text", verdict.reason)

    def test_a_session_made_for_another_server_name_proves_nothing(self) -> None:
        """The server might have shown another certificate to this one."""
        other = shown("several", "a.example.com")
        none = shown("several", None)
        for policy in (VERIFY, SECURE, matching(".example.com"), printed(print_of("several"))):
            requirement = policy.resolve(DOMAIN, HOST)
            self.assertTrue(judge(requirement, shown("several"), self.now()).ok)
            for evidence in (other, none):
                verdict = judge(requirement, evidence, self.now())
                self.assertFalse(verdict.ok)
                self.assertIn("'mx.example.com' is wanted", verdict.reason)
            asking = TLSPolicy(
                policy.level, match=policy.match, fingerprints=policy.fingerprints, servername="a.example.com"
            )
            self.assertTrue(judge(asking.resolve(DOMAIN, HOST), other, self.now()).ok)
            self.assertFalse(judge(asking.resolve(DOMAIN, HOST), shown("several"), self.now()).ok)

    def test_time_passes(self) -> None:
        """A kept session serves no longer than its certificates are valid, nor before."""
        requirement = VERIFY.resolve(DOMAIN, HOST)
        evidence = shown("right")
        for when, good in (
            (evidence.not_before - 1, NO),
            (evidence.not_before, YES),
            (evidence.not_after - 1, YES),
            (evidence.not_after, NO),
            (0.0, NO),
            (float("nan"), NO),
        ):
            self.assertEqual(judge(requirement, evidence, when).ok, good, f"{when}")
        self.assertEqual(judge(requirement, evidence, self.now()).until, evidence.not_after)
        for level in ("may", "encrypt"):
            self.assertEqual(judge(Requirement(level), evidence, self.now()).until, float("inf"))

    def test_the_shortest_life_of_the_chain_counts(self) -> None:
        requirement = VERIFY.resolve(DOMAIN, HOST)
        evidence = shown("under an intermediate")
        until = (NOW + 50 * DAY).timestamp()
        self.assertEqual(judge(requirement, evidence, self.now()).until, until)
        self.assertFalse(judge(requirement, evidence, until).ok)

    def test_evidence_that_is_missing_means_no(self) -> None:
        """Whatever of it was lost, on a wire between two processes say."""
        full = shown("right")
        good = {
            "version": full.version,
            "servername": full.servername,
            "chain_error": None,
            "not_before": full.not_before,
            "not_after": full.not_after,
            "names": full.names,
        }
        requirement = VERIFY.resolve(DOMAIN, HOST)
        self.assertTrue(judge(requirement, Evidence(**good), self.now()).ok)  # type: ignore[arg-type]
        for name in ("version", "servername", "chain_error", "not_after", "names"):
            some = {key: value for key, value in good.items() if key != name}
            self.assertFalse(judge(requirement, Evidence(**some), self.now()).ok, name)  # type: ignore[arg-type]
        self.assertFalse(judge(Requirement("verify", (), (), HOST), full, self.now()).ok, "no name demanded")
        self.assertFalse(judge(Requirement("fingerprint", (), ("",), HOST), Evidence("TLSv1.3", servername=HOST), 1).ok)

    def test_a_level_that_is_not_known_means_no(self) -> None:
        for level in ("dane", "dane-only", "", "Verify"):
            verdict = judge(Requirement(level, (HOST,), (), HOST), shown("right"), self.now())
            self.assertFalse(verdict.ok)
            self.assertFalse(judge(Requirement(level), CLEAR, self.now()).ok)

    def test_reasons_are_one_printable_line(self) -> None:
        """They go to logs, and a server chooses what stands in its certificate."""
        for certificate in CERTIFICATES:
            evidence = shown(certificate)
            for policy in (VERIFY, SECURE, matching(".a.test"), printed("ab" * 32)):
                self.assertTrue(judge(policy.resolve(DOMAIN, HOST), evidence, self.now()).reason.isprintable())
        many = Evidence("TLSv1.3", servername=HOST, not_after=9e9, names=shown("several").names * 100)
        self.assertLess(len(judge(VERIFY.resolve(DOMAIN, HOST), many, self.now()).reason), 500)


class Addresses(SynchronousTestCase):
    def test_are_compared_as_numbers(self) -> None:
        issued = crafted(OURS, [x509.IPAddress(ip_address("2001:db8:0:0::1"))])
        evidence = evidence_of(issued, OURS.certificate_pem, None)
        requirement = VERIFY.resolve("2001:db8::1", "2001:db8::1")
        self.assertTrue(judge(requirement, evidence, time.time()).ok)
