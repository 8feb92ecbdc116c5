"""What tests of several users share: they are become by processes that root starts."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest

from tests.remote.processes import ProcessCase

ONE, OTHER = 65534, 12345
"""Two users; neither must have a name or anything else."""

ACCESS = f"[access]\nusers = [{ONE}, {OTHER}]\n"


class UsersCase(ProcessCase):
    """They need root, to become others. Without it they are skipped, unless ``CI`` is set.

    :ivar path: for a keeper's socket, in a folder that everybody may look into.
    """

    timeout = 120

    def setUp(self) -> None:
        if os.geteuid() != 0:
            said = "borrowers of several users are started by root only: run this test as root"
            if os.environ.get("CI"):
                self.fail(said)
            raise SkipTest(said)
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.folder.chmod(0o755)
        self.path = str(self.folder / "keeper")
