"""Plans: the cheapest mix that holds a promise in simulation, what it bears beyond, and what breaks then."""

import itertools

import pytest
from planned import SPLIT, device

from xgr_runtime.errors import ConfigError
from xgr_runtime.planning.bounds import highest_rate, needs
from xgr_runtime.planning.devices import ROLES, DeviceKind, DeviceRole, Site
from xgr_runtime.planning.search import Planner, price_of, what_breaks
from xgr_runtime.planning.simulation import MixPart
from xgr_runtime.planning.traffic import PlannedTraffic, drawn

AROUND = Site(link=1e12, router=0.0, overhead=0.0)

LONG_AND_NARROW = PlannedTraffic(rate=20.0, slo_ms=900, prompt_tokens={600: 1, 1200: 1}, beam_width=8)
SHORT_AND_WIDE = PlannedTraffic(rate=20.0, slo_ms=900, prompt_tokens=60, beam_width=256)
RETURNING = PlannedTraffic(
    rate=20.0, slo_ms=900, prompt_tokens={300: 1, 1500: 1}, beam_width=200, returning=0.8, users=50
)
QUICK = PlannedTraffic(rate=30.0, slo_ms=120, prompt_tokens=200, beam_width=100)


def planner(traffic: PlannedTraffic, *kinds: DeviceKind, count: int = 250) -> Planner:
    return Planner(kinds or [device(roles=SPLIT)], AROUND, traffic, drawn(traffic, count, 0))


@pytest.mark.parametrize(
    ("traffic", "more"),
    [(LONG_AND_NARROW, "prefill"), (SHORT_AND_WIDE, "decode"), (RETURNING, "decode")],
    ids=["long", "wide", "returning"],
)
def test_a_plan_beats_an_even_split_of_roles(traffic: PlannedTraffic, more: str) -> None:
    one = device(roles=SPLIT)
    it = planner(traffic, one)
    (mix, played), even = it.find(), it.even_split(one)
    assert even is not None
    assert price_of(mix) < price_of(even)
    assert max(mix, key=lambda part: part.devices).role == more
    assert played.keeps(traffic)


@pytest.mark.parametrize("roles", [SPLIT, ROLES], ids=["split", "all"])
def test_no_cheaper_mix_holds_the_promise(roles: tuple[DeviceRole, ...]) -> None:
    """Of all that cost less, played one by one; what falls behind for ever can hold it for a short run."""
    one, traffic = device(roles=roles), QUICK
    it = planner(traffic, one, count=150)
    always = needs([one], traffic, it.requests, AROUND)
    price = int(price_of(it.find()[0]))
    others = 0
    for counts in itertools.product(range(price), repeat=len(roles)):
        mix = tuple(MixPart(one, *part) for part in zip(roles, counts, strict=True) if part[1])
        if sum(counts) < price and highest_rate(mix, always, AROUND) >= traffic.rate:
            others += 1
            assert not it.play(mix, traffic.rate).keeps(traffic), mix
    assert others, "some could have"


def test_the_margin_is_what_it_bears_and_no_more() -> None:
    it = planner(SHORT_AND_WIDE, count=150)
    plan = it.cheapest()
    assert plan.margin >= 1.0
    assert it.play(plan.mix, plan.margin * SHORT_AND_WIDE.rate).keeps(SHORT_AND_WIDE)
    assert not plan.beyond.keeps(SHORT_AND_WIDE)
    assert plan.beyond_rate <= 1.05 * plan.margin * SHORT_AND_WIDE.rate


@pytest.mark.parametrize(
    ("traffic", "mix", "words"),
    [
        (LONG_AND_NARROW, (1, 4), "prompts wait for devices that take them"),
        (SHORT_AND_WIDE, (4, 1), "searches wait"),
    ],
    ids=["long", "wide"],
)
def test_what_breaks_first_is_what_there_is_too_little_of(
    traffic: PlannedTraffic, mix: tuple[int, int], words: str
) -> None:
    one = device(roles=SPLIT)
    it = planner(traffic, one, count=100)
    lopsided = (MixPart(one, "prefill", mix[0]), MixPart(one, "decode", mix[1]))
    good, bad = it.highest(lopsided)
    found = what_breaks(it.play(lopsided, good), it.play(lopsided, 1.2 * bad, to_the_end=True))
    assert words in found


def test_the_cheaper_of_two_devices_is_chosen_by_what_it_does_for_its_price() -> None:
    slow, hopeless = device("slow", 1.0, ("pair",)), device("hopeless", 0.1, ("pair",), faster=0.1)
    for price, name in ((3.0, "fast"), (9.0, "slow")):
        fast = device("fast", price, ("pair",), faster=4.0)
        it = planner(SHORT_AND_WIDE, slow, hopeless, fast, count=100)
        assert {part.kind.name for part in it.find()[0]} == {name}
        assert (hopeless, "pair") not in it.seats, "however many there are, each is too slow"


def test_a_slo_that_no_device_can_keep_is_refused() -> None:
    tight = PlannedTraffic(rate=1.0, slo_ms=10, prompt_tokens=600)
    with pytest.raises(ConfigError, match="slo_ms is 10, and one request in 100 needs"):
        planner(tight).cheapest()


def test_too_few_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="all devices together do not hold"):
        planner(LONG_AND_NARROW, device(roles=SPLIT, most=2)).cheapest()


def test_roles_that_leave_work_undone_are_refused() -> None:
    with pytest.raises(ConfigError, match="nobody would do the other"):
        planner(LONG_AND_NARROW, device(roles=("prefill",))).cheapest()
