"""Topic names are built and taken apart in one place; nothing else passes for a topic of the fleet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_wire.errors import WireError, WireFault
from fleet_wire.topics import FleetTopics, JobTopic, VehicleChannel, VehicleTopic, is_identifier, parse_topic

identifiers = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)


def matches(topic_filter: str, topic: str) -> bool:
    wanted, given_levels = topic_filter.split("/"), topic.split("/")
    return len(wanted) == len(given_levels) and all(
        want in ("+", level) for want, level in zip(wanted, given_levels, strict=True)
    )


@given(identifiers, identifiers, st.sampled_from(VehicleChannel))
def test_a_vehicle_topic_comes_apart_as_it_was_built(fleet: str, vehicle: str, channel: VehicleChannel) -> None:
    topics = FleetTopics(fleet)
    topic = topics.vehicle(vehicle, channel)
    assert parse_topic(topic) == VehicleTopic(fleet, vehicle, channel)
    assert matches(topics.every_vehicle(channel), topic)
    assert topic.count("/") <= 7


@given(identifiers, identifiers, identifiers)
def test_a_result_topic_comes_apart_as_it_was_built(fleet: str, job: str, vehicle: str) -> None:
    topics = FleetTopics(fleet)
    topic = topics.result(job, vehicle)
    assert parse_topic(topic) == JobTopic(fleet, job, vehicle)
    assert matches(topics.every_result(), topic)
    assert topic.count("/") <= 7


def test_names_are_as_the_protocol_says() -> None:
    topics = FleetTopics("f")
    assert [topics.vehicle("v", channel) for channel in VehicleChannel] == [
        "iw/v1/f/veh/v/state",
        "iw/v1/f/veh/v/caps",
        "iw/v1/f/veh/v/tele",
        "iw/v1/f/veh/v/beat",
        "iw/v1/f/veh/v/task",
        "iw/v1/f/veh/v/ctl",
        "iw/v1/f/veh/v/policy",
    ]
    assert topics.result("j", "v") == "iw/v1/f/job/j/res/v"
    assert topics.every_result() == "iw/v1/f/job/+/res/+"
    assert topics.every_vehicle(VehicleChannel.TELE) == "iw/v1/f/veh/+/tele"
    assert topics.coordinator("c") == "iw/v1/f/coord/c/state"
    assert topics.every_coordinator() == "iw/v1/f/coord/+/state"


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "/iw/v1/f/veh/v/state",
        "iw/v2/f/veh/v/state",
        "iw/v1/f/veh/v",
        "iw/v1/f/veh/v/state/",
        "iw/v1/f/veh/v/STATE",
        "iw/v1/f/veh/v/engine",
        "iw/v1/f/veh//state",
        "iw/v1/f/veh/+/state",
        "iw/v1/f/veh/v\n/state",
        "iw/v1/f/veh/" + "v" * 65 + "/state",
        "iw/v1/f/job/j/res/v/w",
        "iw/v1/f/job/j j/res/v",
        "iw/v1/f/job/j/req/v",
        "iw/v1/f/coord/c/state",
        "$SYS/broker/uptime",
    ],
)
def test_any_other_topic_is_refused(topic: str) -> None:
    with pytest.raises(WireError) as caught:
        parse_topic(topic)
    assert caught.value.fault is WireFault.BAD_TOPIC


@given(st.text(max_size=60))
def test_no_text_upsets_the_parser(text: str) -> None:
    with pytest.raises(WireError):
        parse_topic(text)


@pytest.mark.parametrize("text", ["", "a/b", "a+", "#", "$a", "a b", "ä", "a\n", "a" * 65])
def test_an_identifier_has_few_letters_and_a_bound(text: str) -> None:
    assert not is_identifier(text)
    with pytest.raises(WireError):
        FleetTopics(text)
