"""The quarters that an owner allows are those that a plain look at every minute finds."""

from hypothesis import given
from hypothesis import strategies as st

from fleet_wire.policy import QUARTER_MINUTES, WEEK_QUARTERS, Hours, OwnerPolicy, allowed_quarters
from tests.property.owner_policies import owner_hours

DAY = 24 * 60


def works(hours: Hours, minute: int) -> bool:
    """Whether these hours hold in a minute of the week, begun on its day or on the day before."""
    day, of_day = divmod(minute, DAY)
    began_today = day in hours.days
    began_yesterday = (day - 1) % 7 in hours.days
    if hours.start_minute < hours.stop_minute:
        return began_today and hours.start_minute <= of_day < hours.stop_minute
    return (began_today and of_day >= hours.start_minute) or (began_yesterday and of_day < hours.stop_minute)


@given(st.lists(owner_hours, min_size=1, max_size=4))
def test_the_quarters_are_those_of_every_minute_in_them(hours: list[Hours]) -> None:
    quarters = allowed_quarters(OwnerPolicy(version=1, owner="ada", purposes=["general"], hours=hours))
    assert len(quarters) == WEEK_QUARTERS
    for minute in range(7 * DAY):
        assert quarters[minute // QUARTER_MINUTES] == any(works(each, minute) for each in hours)
