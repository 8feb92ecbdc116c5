"""What keeping sessions has saved, by destination."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mailcache import Destination
from mailcache import accounts as module
from mailcache.accounts import Account, Accounts
from tests.pool_world import to

ONE, TWO, THREE = to("one.example"), to("two.example"), to("three.example")


def name(destination: Destination) -> tuple[str, str, None]:
    return str(destination), "default", None


class AccountTests(SynchronousTestCase):
    def test_each_transaction_but_the_first_of_a_session_saves_what_opening_it_took(self) -> None:
        for before, after, transactions, saved in (
            (0, 1, 1, 0),
            (0, 5, 5, 4),
            (1, 2, 1, 1),
            (3, 10, 7, 7),
            (4, 4, 0, 0),
        ):
            for tls in (False, True):
                account = Account()
                account.used(before, after, tls, 0.5)
                self.assertEqual(
                    (account.transactions, account.saved_handshakes, account.saved_seconds),
                    (transactions, saved if tls else 0, saved * 0.5),
                )

    def test_sums(self) -> None:
        first, second = Account(), Account()
        first.opened(True)
        first.used(0, 3, True, 1.0)
        first.misses["needs"] += 1
        second.opened(False)
        second.hits += 2
        second.misses["needs"] += 2
        total = Account()
        total.add(first)
        total.add(second)
        self.assertEqual(
            total.facts(),
            {
                "hits": 2,
                "misses": {"needs": 3},
                "sessions": 2,
                "handshakes": 1,
                "transactions": 3,
                "saved_handshakes": 2,
                "saved_seconds": 2.0,
            },
        )


class AccountsTests(SynchronousTestCase):
    def test_they_come_by_name(self) -> None:
        accounts = Accounts()
        for destination, uses in ((TWO, 3), (ONE, 1), (THREE, 1)):
            accounts.of(destination).used(0, uses, True, 0.1)
        self.assertEqual(
            [(whose, account.transactions) for whose, account in accounts.rows()],
            [(name(ONE), 1), (name(THREE), 1), (name(TWO), 3)],
        )

    def test_a_namespace_counts_by_its_beginning(self) -> None:
        """As many accounts as there are must not take more than they may, nor 25 of them more than an answer holds."""
        accounts = Accounts()
        for last in "ab":
            accounts.of(to("one.example", namespace="\u20ac" * 10_000 + last)).hits += 1
        ((whose, account),) = accounts.rows()
        self.assertEqual((whose[1], account.hits), ("\u20ac" * module.MAX_NAMESPACE, 2))

    def test_what_is_closed_stays_in_the_total(self) -> None:
        self.patch(module, "MAX_ACCOUNTS", 2)
        accounts = Accounts()
        for destination in (ONE, TWO, ONE, THREE):
            accounts.of(destination).hits += 1
        self.assertEqual([whose for whose, _ in accounts.rows()], [name(ONE), name(THREE)])
        self.assertEqual(accounts.total().hits, 4)
