"""The command in small: it counts, and it can fail."""

from __future__ import annotations

import contextlib
import io

from twisted.trial.unittest import SynchronousTestCase

from mailcache.wire import content
from tests.nightly import stuffing


class CommandTests(SynchronousTestCase):
    def run_it(self, length: int) -> tuple[int, str]:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            status = stuffing.main(["--length", str(length)])
        return status, out.getvalue()

    def test_nothing_is_wrong(self) -> None:
        status, said = self.run_it(4)
        self.assertEqual(status, 0, said)
        self.assertIn("contents of 1 to 4 octets: 340\n", said)
        for way in stuffing.WAYS:
            self.assertIn(f"by {way}: 2,340 (", said)

    def test_an_encoder_that_takes_each_piece_for_itself_is_found(self) -> None:
        """A dot behind a line end of the piece before it is not doubled then."""
        encode = content.ContentEncoder.encode

        def forgetful(encoder: content.ContentEncoder, piece: bytes) -> bytes:
            encoder._line_start = False
            return encode(encoder, piece)

        self.patch(content.ContentEncoder, "encode", forgetful)
        status, said = self.run_it(3)
        self.assertEqual(status, 1)
        self.assertIn("wrong: the encoder: ", said)
        self.assertIn("was lost: 3\n", said)
