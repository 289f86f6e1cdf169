"""Who may set what: real peers of other uids on a real socket."""

from __future__ import annotations

from collections.abc import Callable

from powerd_site import ALICE, BOB, Person, Site

People = Callable[..., Person]


def test_a_user_sets_the_limit_of_a_gpu_on_which_it_alone_computes(site: Site, person: People) -> None:
    site.start()
    alice = person(ALICE)
    alice.limit(site, 450.0)
    assert alice.say(op="renew") == {"ok": True, "leases": {site.gpu: 450.0}, "ended": {}}
    assert alice.say(op="release", gpu=site.gpu) == {"ok": True, "restored": True}
    assert site.limit_w() == 700.0
    assert site.entries() == []
