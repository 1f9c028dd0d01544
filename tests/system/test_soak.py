"""`make soak` in small: sixty vehicles, a broker that is killed, and each acknowledged message looked up in the end."""

from pathlib import Path

from benchmarks.soak import Plan, judge, judge_messages, run


async def test_no_acknowledged_message_is_lost_over_the_brokers_death(mosquitto_program: str, tmp_path: Path) -> None:
    plan = Plan(agents=60, minutes=0.15, job_rows=2_000, in_process=30)
    soak, found = await run(tmp_path, plan)
    assert [figure for figure in judge_messages(soak, found) if not figure.met] == []
    assert len(judge(soak, found, plan)) > len(judge_messages(soak, found))
    assert min(soak.count("links_lost"), soak.jobs_done, found.rows.kept, found.documents.kept) > 0
