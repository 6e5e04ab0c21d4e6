"""On paper: what one million subscribers take, computed from what was measured. Each line says
which row its figure comes from."""

import textwrap
from statistics import median

SUBSCRIBERS = 1_000_000
SECONDS_BETWEEN = 10     # events, for each subscriber
CHANNEL = 100            # subscribers of a channel: an event goes to so many
PLACES = 50_000          # subscribers of one gateway, well below what its memory can hold
FRAME_BYTES = 150        # of the measured events, on the wire
TCP_BYTES = 66           # of headers for each, with Ethernet


class Missing(Exception):
    """A row that the example needs was not measured."""


def raw(results, name):
    for row in results:
        if row["name"] == name and row["raw"]:
            return row["raw"]
    raise Missing(name)


def of_gateway(found, name):
    try:
        return found["gateway"]
    except KeyError:
        raise Missing(name) from None


def loads(results, name):
    return of_gateway(raw(results, name)["results"], name)


def measured(results):
    """The figures that the example begins with."""
    listeners = raw(results, "listeners")
    postgres = {int(count): median(one["postgres_usec"] for one in found)
                for count, found in listeners.items()}
    most = max(postgres)
    return {
        "delivery_usec": median(one["cpu_usec_per_delivery"]
                                for one in loads(results, "channels")),
        "bytes": of_gateway(raw(results, "memory"), "memory")["pss_bytes_per_subscriber"],
        "postgres_usec": postgres[1],
        "listener_usec": (postgres[most] - postgres[1]) / (most - 1),
        "feed_usec": median(one["feed_usec"] for one in next(
            found for count, found in listeners.items() if int(count) == most)),
        "storm_seconds": raw(results, "storm")["storm"]["caught_up_seconds"],
    }


def example(found):
    """(text, figure, row) for each line."""
    gateways = SUBSCRIBERS // PLACES
    deliveries = SUBSCRIBERS // SECONDS_BETWEEN
    events = deliveries // CHANNEL
    send = deliveries / gateways * found["delivery_usec"] / 1e6
    feed = events * found["feed_usec"] / 1e6
    postgres = events * (found["postgres_usec"] + (gateways - 1) * found["listener_usec"]) / 1e6
    wire = deliveries * (FRAME_BYTES + TCP_BYTES) * 8 / 1e6
    return [
        ("gateways, of 50 000 subscribers each", f"{gateways}", "chosen"),
        ("memory of a gateway's process", f"{PLACES * found['bytes'] / 1e6:.0f} MB", "memory"),
        ("messages a second, in all", f"{deliveries:,}".replace(",", " "), "chosen"),
        ("events a second, each to 100 subscribers", f"{events:,}".replace(",", " "), "chosen"),
        ("of one core, in each gateway, for its messages", f"{send * 100:.1f} %", "channels"),
        ("of one core, in each gateway, for all events", f"{feed * 100:.1f} %", "listeners"),
        ("cores of the database, for all gateways", f"{postgres:.2f}", "listeners"),
        ("network, in all", f"{wire:.0f} Mbit/s", "150 bytes each, and TCP's"),
        ("a gateway ends: until its 50 000 have all that they missed",
         f"{PLACES / 10_000 * found['storm_seconds'] / (gateways - 1):.1f} s",
         "storm, shared by the other 19"),
    ]


HEADING = (f"On paper: a million subscribers in channels of {CHANNEL}, each with an event every"
           f" {SECONDS_BETWEEN} s")


def text(results):
    """The example, or why there is none."""
    try:
        lines = example(measured(results))
    except Missing as missing:
        return [HEADING, f"  not computed: the row {missing} was not measured"]
    return [HEADING, *(f"  {what:62}{figure:>12}  ({row})" for what, figure, row in lines),
            *textwrap.wrap(
                "The database's share is that of the row at the same 1 000 events/s, one to a POST,"
                " and as much for each further gateway as one more has cost there.",
                110, initial_indent="  · ", subsequent_indent="    ")]
