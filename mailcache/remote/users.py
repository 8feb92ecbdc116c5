"""The users of this host: who borrows, and who may."""

from __future__ import annotations

import os
import pwd

import attrs

ROOT = 0


@attrs.frozen(slots=True, cache_hash=True)
class User:
    """Who is at the other end of a link; ``uid`` is ``None`` where the system does not tell."""

    uid: int | None
    gids: frozenset[int] = frozenset()


def groups_of(uid: int) -> frozenset[int]:
    """The groups of a user as the system's database has them; none for who is not in it."""
    try:
        entry = pwd.getpwuid(uid)
    except (KeyError, OverflowError):
        return frozenset()
    return frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))


@attrs.frozen(slots=True)
class Permission:
    """Users and groups who may do something."""

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()

    def given_to(self, user: User) -> bool:
        """Whether ``user`` is one of them."""
        return user.uid in self.uids or not self.gids.isdisjoint(user.gids)


def own_and_root() -> frozenset[int]:
    """Who can read this process's memory anyway."""
    return frozenset((os.geteuid(), ROOT))
