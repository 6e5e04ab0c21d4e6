"""The cost of one delivered message stays what it is: instructions, counted by callgrind.

The numbers stand a tenth above what gcc 12 makes of it with -O2; another compiler may need
others. The counts vary by one per cent from run to run, those of an event for one subscriber by
five, because the shard now and then takes a turn more.
"""

import pytest

from bench.instructions import (MANY_SUBSCRIBERS, SUBSCRIBERS, measure_heartbeat,
                                measure_one_channel, measure_one_of)
from harness.waiting import SLOWNESS

PER_MESSAGE = 145
PER_MESSAGE_IN_BURSTS = 2.9
PER_EVENT_FOR_ONE = 1075
KEPT_PER_MESSAGE = 12.2
PER_HEARTBEAT = 1420

# Of a sanitizer's build the sanitizer would be counted: there these tests do not exist.
if SLOWNESS == 1:

    def test_a_message_costs_its_send_and_little_more():
        figures = measure_one_channel()

        assert figures["sends_per_message"] == pytest.approx(1, abs=0.001)
        assert figures["per_message"] <= PER_MESSAGE
        assert figures["sends_per_message_in_bursts"] == pytest.approx(0.01, abs=0.001)
        assert figures["per_message_in_bursts"] <= PER_MESSAGE_IN_BURSTS
        assert 0 < figures["kept_per_message"] <= KEPT_PER_MESSAGE

    def test_an_event_for_one_subscriber_costs_the_same_however_many_there_are():
        few, many = measure_one_of(SUBSCRIBERS), measure_one_of(MANY_SUBSCRIBERS)

        assert few <= PER_EVENT_FOR_ONE
        # To look at each of 2000 would at the least double it.
        assert many <= few * 1.15

    def test_a_heartbeat_costs_little():
        assert measure_heartbeat() <= PER_HEARTBEAT
