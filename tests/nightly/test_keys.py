"""The command on keys, in small."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

from twisted.trial.unittest import SynchronousTestCase

from mailcache.destination import SessionKey
from tests.nightly import keys


class Command(SynchronousTestCase):
    def told(self, *arguments: str) -> tuple[int, str]:
        said = io.StringIO()
        with redirect_stdout(said):
            status = keys.main(list(arguments))
        return status, said.getvalue()

    def test_counts_both_sides(self) -> None:
        status, said = self.told("--pairs", "1500", "--seed", "7")
        self.assertEqual(status, 0, said)
        figures = dict(line.rsplit(": ", 1) for line in said.splitlines())
        self.assertEqual((figures["seed"], figures["pairs"]), ("7", "1,500"))
        same, others = (
            int(figures[name].replace(",", ""))
            for name in (
                "of them mean the same, and have equal keys",
                "of them do not, and have different keys",
            )
        )
        self.assertEqual(same + others, 1500)
        self.assertGreater(min(same, others), 500)

    def test_says_the_same_for_the_same_seed(self) -> None:
        self.assertEqual(keys.run(100, 3), keys.run(100, 3))
        self.assertNotEqual(keys.run(100, 3), keys.run(100, 4))

    def test_notices_a_key_that_leaves_out_a_field(self) -> None:
        for name in ("identity", "endpoint", "tls_class"):
            self.patch(SessionKey, "__eq__", _without(name))
            self.patch(SessionKey, "__hash__", lambda _: 0)
            status, said = self.told("--pairs", "500", "--seed", "1")
            self.assertEqual(status, 1)
            self.assertIn("BROKEN: a key does not say what its fields do", said)

    def test_notices_a_key_that_puts_its_fields_into_one_text(self) -> None:
        self.patch(SessionKey, "__eq__", lambda one, other: _joined(one) == _joined(other))
        self.patch(SessionKey, "__hash__", lambda one: hash(_joined(one)))
        self.assertEqual(self.told("--pairs", "500", "--seed", "1")[0], 1)


def _without(name: str) -> object:
    rest = {"endpoint", "identity", "tls_class"} - {name}
    return lambda one, other: all(getattr(one, each) == getattr(other, each) for each in rest)


def _joined(key: SessionKey) -> str:
    endpoint, identity, tls = key.endpoint, key.identity, key.tls_class
    return "".join(
        str(each)
        for each in (
            endpoint, identity.namespace, identity.bind_address, identity.helo_name, identity.client_certificate,
            identity.proxy, identity.uid, tls and tls.trust_anchors, tls and tls.min_version, tls and tls.ciphers,
            tls and tls.client_certificate, repr(identity.credentials),
        )
    )  # fmt: skip
