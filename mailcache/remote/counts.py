"""The counts of several caches as one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def total(counts: dict[str, Any], parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """``counts`` with those of ``parts`` added, tables by reason included; see
    `mailcache.interfaces.ISessionCache.statistics`.

    What is in no part was leased to nobody: a count of leases never falls below 0.
    """
    found: dict[str, Any] = {name: dict(count) if isinstance(count, dict) else count for name, count in counts.items()}
    for part in parts:
        for name, count in part.items():
            if isinstance(count, dict):
                table = found.setdefault(name, {})
                for reason, times in count.items():
                    table[reason] = table.get(reason, 0) + times
            else:
                found[name] = found.get(name, 0) + count
    found["leased"] = max(0, found["leased"])
    return found
