"""The one judge: does the evidence meet the requirement? For a fresh handshake and a reused session alike."""

from __future__ import annotations

import attrs
from service_identity import CertificateError, VerificationError
from service_identity.hazmat import (
    DNS_ID,
    DNSPattern,
    IPAddress_ID,
    verify_service_identity,
)

from mailcache.trust.evidence import Evidence
from mailcache.trust.policy import Requirement, is_address


@attrs.frozen(slots=True)
class Verdict:
    """Whether a session may serve. ``reason`` says why not, or in what way it is trusted.

    It holds until ``until`` (seconds since 1970), when the certificates that it rests on expire.
    """

    ok: bool
    reason: str
    until: float = float("inf")


def judge(requirement: Requirement, evidence: Evidence, now: float) -> Verdict:
    """The verdict on ``evidence`` at ``now`` (seconds since 1970). What is not known, or missing, means no."""
    level = requirement.level
    in_clear = evidence.version is None
    if level == "none":
        return Verdict(True, "clear") if in_clear else Verdict(False, "clear text is demanded, the session has TLS")
    if level == "may":
        return Verdict(True, "clear" if in_clear else "encrypted")
    if in_clear:
        return Verdict(False, f'level "{level}" demands TLS, the session is in clear text')
    if level == "encrypt":
        return Verdict(True, "encrypted")
    if evidence.servername != requirement.servername:
        return Verdict(False, f"made for the server name {evidence.servername!r}, {requirement.servername!r} is wanted")
    if level == "fingerprint":
        shown = {evidence.certificate, evidence.public_key} - {""}
        if shown.intersection(requirement.fingerprints):
            return Verdict(True, "fingerprint")
        return Verdict(False, "neither the certificate nor its public key has one of the fingerprints")
    if level in ("verify", "secure"):
        return _judge_names(requirement, evidence, now)
    return Verdict(False, f"level {level!r} is not known here")


def _judge_names(requirement: Requirement, evidence: Evidence, now: float) -> Verdict:
    if evidence.chain_error is not None:
        return Verdict(False, f"the certificate is not trusted: {evidence.chain_error}")
    if not evidence.not_before <= now < evidence.not_after:
        return Verdict(False, "a certificate of the chain is not valid at this time")
    for name in requirement.names:
        if _shows(evidence, name):
            return Verdict(True, f"verified for {name}", evidence.not_after)
    shown = ", ".join(_printed(pattern) for pattern in evidence.names[:5]) or "no name at all"
    return Verdict(False, f"the certificate is for {shown}, wanted is {' or '.join(requirement.names)}")


def _shows(evidence: Evidence, name: str) -> bool:
    """Whether the certificate names this host or address, or with ".example.com" a host below that domain."""
    if not name.isascii():
        return False
    if name.startswith("."):
        suffix = name.encode("ascii")
        shown = [pattern.pattern for pattern in evidence.names if isinstance(pattern, DNSPattern)]
        return any(pattern.endswith(suffix) and pattern != suffix for pattern in shown)
    try:
        wanted = IPAddress_ID(name) if is_address(name) else DNS_ID(name)
        return bool(verify_service_identity(evidence.names, [wanted], []))
    except (VerificationError, CertificateError, ValueError):
        return False


def _printed(pattern: object) -> str:
    value = getattr(pattern, "pattern", pattern)
    return value.decode("ascii", "backslashreplace") if isinstance(value, bytes) else str(value)
