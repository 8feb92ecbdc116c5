"""Faults by chance: as probable as was said, of the kinds that can strike, and the same again with the same seed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mailcache.testing import APPLICABLE, Chaos, Connection, Fault, MemoryReactor, SMTPServer
from tests.helpers import LARGE, Bed
from tests.pages import ROOT


def record(number: int = 1, tls: bool = False) -> Connection:
    peer: Any = None
    return Connection(number, peer, tls=tls)


class ChoosingTests(SynchronousTestCase):
    def test_the_same_seed_chooses_the_same(self) -> None:
        chosen = []
        for seed in (7, 7, 8):
            chaos = Chaos(0.5, seed=seed)
            chosen.append([chaos.choose("mail", record()) for _ in range(50)])
        self.assertEqual(chosen[0], chosen[1])
        self.assertNotEqual(chosen[0], chosen[2])

    def test_it_strikes_as_often_as_was_said(self) -> None:
        chaos = Chaos({"mail": 0.25, "rcpt": 0, "data": 1}, seed=1)
        hits = {point: sum(bool(chaos.choose(point, record())) for _ in range(2000)) for point in APPLICABLE}
        self.assertTrue(400 < hits.pop("mail") < 600)
        self.assertEqual(hits.pop("data"), 2000)
        self.assertEqual(set(hits.values()), {0})
        self.assertEqual(sum(chaos.struck.values()), 2000 + chaos_count(chaos, "mail"))

    def test_every_kind_comes_where_it_can(self) -> None:
        chaos = Chaos(1, seed=1)
        for point, kinds in APPLICABLE.items():
            encrypted = {chaos.choose(point, record(number, tls=True)) for number in range(1000)}
            self.assertEqual(encrypted, kinds, point)
            if point != "handshake":
                in_clear = {chaos.choose(point, record(number)) for number in range(1000)}
                self.assertEqual(in_clear, kinds - {"notify", "badrecord"}, point)

    def test_only_the_kinds_that_are_wanted_come(self) -> None:
        chaos = Chaos(1, seed=1, kinds=["rst", "fin", "inject"])
        self.assertEqual({chaos.choose("mail", record()) for _ in range(100)}, {"rst", "fin"})
        self.assertEqual({chaos.choose("idle", record()) for _ in range(100)}, {"rst", "fin"})

    def test_content_has_one_choice_a_message(self) -> None:
        """However many segments there are, and whether or not silence was asked for before the first."""
        chaos = Chaos({"content": 0.5}, seed=3)
        struck = 0
        for number in range(1, 401):
            connection = record()
            connection.transactions = number
            kinds = [chaos.choose("content", connection, only="silence")]
            kinds += [chaos.choose("content", connection) for _ in range(20)]
            found = [kind for kind in kinds if kind is not None]
            self.assertLess(len(found), 2)
            struck += len(found)
            self.assertEqual("silence" in found, kinds[0] == "silence")
        self.assertTrue(150 < struck < 250)

    def test_a_seed_that_was_not_given_is_printed(self) -> None:
        printed = io.StringIO()
        self.patch(sys, "stderr", printed)
        chaos = Chaos(0.5)
        self.assertEqual(printed.getvalue(), f"mailcache.testing: chaos with seed={chaos.seed}\n")
        self.assertIn(f"seed={chaos.seed}", repr(chaos))
        Chaos(0.5, seed=1)
        self.assertEqual(printed.getvalue().count("\n"), 1)

    def test_wrong_input(self) -> None:
        for arguments, hint in (
            ({"rate": 1.5}, "from 0 to 1"),
            ({"rate": -0.1}, "from 0 to 1"),
            ({"rate": True}, "from 0 to 1"),
            ({"rate": float("nan")}, "from 0 to 1"),
            ({"rate": {"nowhere": 0.5}}, "after_dot"),
            ({"rate": 0.5, "kinds": ["bang"]}, "halfclose"),
        ):
            with self.assertRaises(ValueError) as caught:
                Chaos(**arguments)
            self.assertIn(hint, str(caught.exception))


def chaos_count(chaos: Chaos, point: str) -> int:
    return sum(times for (where, _), times in chaos.struck.items() if where == point)


class ServerTests(SynchronousTestCase):
    """What a server with chaos does, seen by a cache."""

    def bed(self, rate: Any, **more: Any) -> Bed:
        chaos = Chaos(rate, seed=5, **more)
        return Bed(server={"chaos": chaos})

    def test_conversations_are_struck(self) -> None:
        bed = self.bed({"rcpt": 1}, kinds=["5xx"])
        result = bed.deliver()
        self.assertEqual(result.rejected["b@example.com"].code, 550)
        self.assertEqual([(fault.point, fault.kind) for fault, _ in bed.server.fired], [("rcpt", "5xx")])
        self.assertIn("fault: 5xx at rcpt", [text for _, _, text in bed.server.log])
        bed.close()

    def test_content_is_struck(self) -> None:
        bed = self.bed({"content": 1}, kinds=["silence"])
        self.assertEqual(bed.deliver(LARGE).phase, "content")
        self.assertEqual([fault.kind for fault, _ in bed.server.fired], ["silence"])
        bed.close()

    def test_parked_connections_are_struck(self) -> None:
        bed = self.bed({"idle": 1}, kinds=["rst", "restart"])
        leases = [bed.finish(bed.acquire()) for _ in range(3)]
        for lease in leases:
            lease.release()
        self.assertEqual(bed.counts(), (0, 3, 0, 0))
        self.assertIn(bed.server.strike_idle(), (1, 2, 3))  # a restart takes the others with it
        bed.reactor.run_for(1)
        self.assertEqual(bed.counts(), (0, 0, 0, 0))
        self.assertEqual(bed.server.open_count, 0)
        bed.close()

    def test_faults_that_were_armed_go_first(self) -> None:
        bed = self.bed({"mail": 1}, kinds=["5xx"])
        bed.server.arm(Fault("mail", "4xx"))
        codes = [bed.deliver().rejected["b@example.com"].code for _ in range(2)]
        self.assertEqual(codes, [451, 550])
        bed.close()


class ProcessTests(SynchronousTestCase):
    """The same from the command line."""

    def run_it(self, *options: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "mailcache.testing", *options]
        return subprocess.run(command, input=b"", capture_output=True, timeout=60, cwd=ROOT)

    def test_a_server_with_chaos_says_its_seed(self) -> None:
        ready, end = map(json.loads, self.run_it("--chaos", "0.5", "--seed", "9").stdout.splitlines())
        self.assertEqual((ready["seed"], end["faults"], end["messages"]), (9, 0, 0))

    def test_wrong_options(self) -> None:
        for options, hint in ((("--chaos", "2"), b"from 0 to 1"), (("--seed", "1"), b"with --chaos only")):
            refused = self.run_it(*options)
            self.assertEqual(refused.returncode, 2)
            self.assertIn(hint, refused.stderr)


class ForgettingTests(SynchronousTestCase):
    """A server that has seen much forgets what is over, and counts on."""

    def test_counts_stay_and_records_go(self) -> None:
        bed = Bed()
        for _ in range(3):
            bed.deliver()
        bed.deliver(destination=bed.to("[127.0.0.1]:2525", namespace="another"))
        bed.server.abort_connections()
        bed.reactor.run_for(1)
        bed.deliver()
        bed.server.forget()
        self.assertEqual((bed.server.connection_count, bed.server.handshake_count), (3, 3))
        self.assertEqual(bed.server.message_count, 5)
        self.assertEqual([connection.number for connection in bed.server.connections], [3])
        self.assertEqual((bed.server.messages, bed.server.log, bed.server.fired), ([], [], []))
        bed.deliver(destination=bed.to("[127.0.0.1]:2525", namespace="a third"))
        bed.deliver()
        self.assertEqual([connection.number for connection in bed.server.connections], [3, 4])
        self.assertEqual((bed.server.connection_count, bed.server.message_count), (4, 7))
        self.assertEqual(bed.server.connections[0].transactions, 2)
        bed.close()
        self.assertEqual(SMTPServer(MemoryReactor()).connection_count, 0)
