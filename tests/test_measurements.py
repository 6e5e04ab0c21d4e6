"""The bench's measurements in Python, in short: what they find must be what is there."""

import pytest
from bench import churn, latency, memory, start, watched, where


def test_a_slope_is_found_under_noise_and_a_late_step_is_none():
    noise = [0, 4096, -8192, 4096, 0, 12288]
    rising = [(n, 10**6 + 100 * n + noise[n % 6]) for n in range(600)]
    level = [(n, 10**6 + (n > 540) * 10**6 + noise[n % 6]) for n in range(600)]
    assert churn.slope(rising) == pytest.approx(100 * 3600, rel=0.05)
    assert abs(churn.slope(level)) < 20 * 3600


def test_a_subscriber_who_is_refused_is_not_counted(gateway):
    with memory.Holder(gateway.address) as holder:
        with pytest.raises(RuntimeError, match="not a stream"):
            holder.connect([memory.chrome_header("/events?channel=a%00b")])


def test_who_leaves_and_comes_back_leaves_nothing_open(pg, gateway_factory):
    gateway = gateway_factory(pg, churn.SETTINGS)
    figures = churn.measure(gateway, seconds=8, subscribers=50, rate=50)
    assert figures["departures"] > 20 and figures["posts"] > 5
    assert abs(figures["descriptors_more"]) < 5


def test_the_latency_of_every_event_is_taken():
    figures = latency.measure_alone(10)
    for name in ("post", "insert"):
        commit, sent = (figures[name][what] for what in ("commit", "sent"))
        assert 0 < commit["p50"] <= sent["max"]
        assert commit["p50"] < 5_000_000


def test_the_start_on_a_filled_table_is_timed():
    figures = start.measure(rows=2000, starts=1)
    assert 0 < figures["ready_msec"] < 30_000
    assert 0 < figures["cold_ready_msec"] < 30_000


def test_a_stack_counts_for_its_system_call_and_apart_for_what_the_receiver_gets():
    sends = "\t 1 tcp_sendmsg+0x1 ([kernel.kallsyms])\n\t 2 __sys_sendto+0x2 ([kernel.kallsyms])\n"
    softirq = "\t 3 tcp_v4_rcv+0x3 ([kernel.kallsyms])\n\t 4 net_rx_action ([kernel.kallsyms])\n"
    wakes = "\t 5 try_to_wake_up+0x5 ([kernel.kallsyms])\n"
    user = "\t 6 fanout_round+0x6 (/usr/bin/pg-sse-gateway)\n"
    stacks = (sends, softirq + sends, wakes + softirq + sends, user)
    text = "".join(f"shard/0 \n{stack}\n" for stack in stacks)
    assert where.read_samples(text) == {
        ("kernel", "sendto"): 1, ("kernel", "sendto: the receiver's half of TCP"): 1,
        ("kernel", "sendto: wakes the receiver"): 1, ("pg-sse-gateway", "fanout_round"): 1}


def test_a_second_of_a_storm_is_shared_by_all_who_have_come_back():
    places = {("kernel", "sendmsg"): where.FREQUENCY - 99, ("libc.so.6", "memcpy"): 99}
    assert where.each_usec(places, {"storm": {}, "cpu_usec_per_delivery": 5}) == 100
    assert where.each_usec(places, {"cpu_usec_per_delivery": 5}) == 5


def test_each_row_of_a_watched_table_is_accounted_for():
    figures = watched.measure(rounds=1, rows=500, single_rows=20)
    assert set(figures) == set(watched.TABLES)
    for works in figures.values():
        assert all(0 < works[work]["cpu_usec"][0] for work in ("insert", "update", "single"))
