"""A played deployment: its times are those that can be worked out by hand where nobody waits for anybody."""

import pytest
from planned import SPLIT, device

from xgr_runtime.planning.devices import Site
from xgr_runtime.planning.simulation import Mix, MixPart, Played, play
from xgr_runtime.planning.traffic import PlannedTraffic, drawn
from xgr_runtime.wire.messages import StepCost

ALONE = Site(link=1e18, router=0.0, overhead=0.0)
ONE = device()
PAIR: Mix = (MixPart(ONE, "pair", 1),)
TWO: Mix = (MixPart(ONE, "prefill", 1), MixPart(ONE, "decode", 1))
TRAFFIC = PlannedTraffic(rate=1.0, slo_ms=1000, prompt_tokens=400, beam_width=20, codebook=100)


def played(mix: Mix, traffic: PlannedTraffic = TRAFFIC, rate: float = 0.1, count: int = 200) -> Played:
    return play(mix, ALONE, traffic, drawn(traffic, count, 0), rate, to_the_end=True)


@pytest.mark.parametrize("mix", [PAIR, TWO], ids=["pair", "split"])
def test_an_idle_deployment_takes_what_the_work_takes(mix: Mix) -> None:
    # 400 tokens in two forwards, as longer ones gain little; steps over 1, 20 and 20 beams.
    alone = 2 * 1e-3 + 400 * 1e-4 + 3 * 1e-3 + 41 * 2e-4
    found = played(mix)
    assert found.answered == 1.0
    assert found.percentile(0.5) == pytest.approx(alone, rel=1e-6)


def test_what_surrounds_the_workers_counts() -> None:
    requests = drawn(TRAFFIC, 200, 0)
    bare = play(TWO, ALONE, TRAFFIC, requests, 0.1).percentile(0.5)
    around = Site(link=400 * 1024 / 0.010, router=0.004, overhead=0.003)
    # A link that needs 10 ms for a prompt is through with all but the last of 4 layers when it is computed.
    more = play(TWO, around, TRAFFIC, requests, 0.1).percentile(0.5) - bare
    assert more == pytest.approx(0.004 + 0.003 + 0.010 / 4, rel=1e-3)


def test_prompts_of_users_who_return_are_computed_in_part() -> None:
    known = PlannedTraffic(
        rate=1.0,
        slo_ms=1000,
        prompt_tokens={64: 1, 4096: 1},
        beam_width=20,
        returning=1.0,
        new_tokens=64,
        users=1,
    )
    found = played(TWO, known, count=60)
    # From 64 to 4,096 tokens by 64 a time; all but the new ones are found.
    assert found.percentile(0.9) < 2e-3 + 2 * 64 * 1e-4 + 4e-3 + 41 * 2e-4


def test_more_requests_than_it_can_bear_are_late_or_refused() -> None:
    hurried = PlannedTraffic(rate=1.0, slo_ms=300, prompt_tokens=400, beam_width=20, timeout_ms=500)
    bound = 1 / (400 * 1e-4)
    good, bad = (played(TWO, hurried, rate, 600) for rate in (0.6 * bound, 2.0 * bound))
    assert good.keeps(hurried)
    assert not bad.keeps(hurried)
    assert bad.answered < 0.75, "admission refuses what would be late"
    assert bad.percentile(1.0) <= 0.5 + 1e-6, "nobody is answered after the deadline"
    assert bad.busy["device", "prefill"] > 0.9


def test_memory_for_few_prompts_is_what_others_wait_for() -> None:
    scarce = device("scarce", kv_tokens=512)
    mix = (MixPart(ONE, "prefill", 1), MixPart(scarce, "decode", 1))
    wide = PlannedTraffic(rate=1.0, slo_ms=1000, prompt_tokens=400, beam_width=200)
    roomy, tight = (played(m, wide, 8.0, 300) for m in (TWO, mix))
    assert tight.slowest["KV hand-over"] > 3 * roomy.slowest["KV hand-over"] + 0.05
    assert tight.answered == 1.0


def test_a_run_ends_early_where_nothing_saves_it() -> None:
    requests = drawn(TRAFFIC, 2000, 0)
    tight = PlannedTraffic(rate=1.0, slo_ms=40, prompt_tokens=400, beam_width=20)
    found = play(TWO, ALONE, tight, requests, 1.0)
    assert found.stopped and not found.keeps(tight)
    assert len(found.latencies) < 100


def test_the_same_run_gives_the_same_figures() -> None:
    traffic = PlannedTraffic(rate=1.0, slo_ms=1000, prompt_tokens={100: 1, 800: 1}, returning=0.5)
    requests = drawn(traffic, 300, 7)
    first, again = (play(TWO, ALONE, traffic, requests, 15.0) for _ in range(2))
    assert first == again


def test_costs_that_were_seen_in_small_launches_only_go_on_beyond_them() -> None:
    from xgr_runtime.planning.speeds import Level, MeasuredSpeed

    small = StepCost(0.0, 1e-4, 0.0, most_tokens=10, most_pairs=10)
    speed = MeasuredSpeed(small, small)
    assert speed.forward([(0, 1000)]) == pytest.approx(0.1)
    assert speed.step([Level(500, 10, False), Level(500, 10, True)]) == pytest.approx(0.1)


def test_split_devices_have_no_pair() -> None:
    assert "pair" not in device(roles=SPLIT).roles
