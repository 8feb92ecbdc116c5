"""A process that sends for all tenants at once over one keeper, as the JSON that is its argument says.

It prints one line of JSON: the numbers of the messages that were "sent", of those of which nobody can know
("uncertain"), and why others have "failed".
"""

from __future__ import annotations

import json
import sys
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.task import react

from mailcache import DeliveryError, Envelope, RemoteSessionCache, UncertainDelivery, deliver
from tests.nightly.tenants import ALL, TENANTS


async def send(
    reactor: Any, *, keeper: str, port: int, ca_file: str, name: str, messages: int, at_once: int, seed: int
) -> dict[str, Any]:
    """Send them, each for a tenant that chance has chosen."""
    random = Random(seed)
    # Without a fallback: what is sent goes over the keeper's sessions, or not at all.
    cache = RemoteSessionCache(reactor, f"unix:{quoteStringArgument(keeper)}", fallback=None)
    places = [tenant.destination(port, ca_file) for tenant in ALL]
    waiting = iter(range(messages))
    told: dict[str, Any] = {"sent": [], "uncertain": [], "failed": {}}

    async def some() -> None:
        for each in waiting:
            # All of them have their turn first, however few messages there are.
            which = each if each < TENANTS else random.randrange(TENANTS)
            tenant = ALL[which]
            envelope = Envelope(tenant.seen[3], ["b@example.com"])
            try:
                result = await deliver(cache, places[which], envelope, tenant.content(f"{name}-{each}"))
            except UncertainDelivery:
                told["uncertain"].append(each)
            except DeliveryError as error:
                told["failed"][each] = str(error)
            else:
                if result.rejected:
                    told["failed"][each] = str(result.reply)
                else:
                    told["sent"].append(each)

    await gatherResults([Deferred.fromCoroutine(some()) for _ in range(at_once)])
    await cache.close()
    return told


def main() -> None:
    order = json.loads(sys.argv[1])

    async def go(reactor: Any) -> None:
        print(json.dumps(await send(reactor, **order)), flush=True)

    react(lambda reactor: Deferred.fromCoroutine(go(reactor)))


if __name__ == "__main__":
    main()
