"""Progress where there is no terminal: plain lines, few of them, and each milestone."""

import pytest

from trimtab import terminal
from trimtab.terminal import Reporter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_ten_seconds_and_at_the_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    report = Reporter(None)
    for done in range(1, 41):
        report("training dpo", done, 40, f"loss {done}")
        clock[0] += 1.0
    assert capsys.readouterr().out.splitlines() == [
        "training dpo: 1/40 (0 s)  loss 1",
        "training dpo: 11/40 (10 s, 29 s left)  loss 11",
        "training dpo: 21/40 (20 s, 19 s left)  loss 21",
        "training dpo: 31/40 (30 s, 9 s left)  loss 31",
        "training dpo: 40/40 (39 s)  loss 40",
    ]


def test_milestones_are_lines_of_their_own(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    report = Reporter(None)
    report("runs", 6, 12)  # six were there before
    for done in range(7, 9):
        clock[0] += 2.0
        report("runs", done, 12, f"kto/seed={done}: gold 0.7", milestone=True)
    assert capsys.readouterr().out.splitlines() == [
        "runs: 6/12 (0 s)",
        "runs: 7/12 (2 s, 10 s left)  kto/seed=7: gold 0.7",
        "runs: 8/12 (4 s, 8 s left)  kto/seed=8: gold 0.7",
    ]
