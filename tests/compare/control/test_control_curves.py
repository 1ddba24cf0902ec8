"""Learning curves from synthetic metrics files."""

from pathlib import Path

import numpy as np
import pytest
from made_up import Curve as Points
from made_up import add_run, write_about

from trimtab.compare.control.curves import Curve, learning_curve
from trimtab.compare.results import load_results


def curve_of(out: Path, *seeds: Points) -> Curve | None:
    write_about(out)
    for seed, points in enumerate(seeds):
        add_run(out, "ppo", 1.0, seed=seed, curve=points)
    return learning_curve(out, tuple(load_results(out)))


def at(curve: Curve, steps: float) -> float:
    return float(np.interp(steps, curve.steps, curve.middle))


def test_seeds_meet_on_common_steps(tmp_path: Path) -> None:
    """Three straight lines that were logged at other steps; their mean is straight too."""
    curve = curve_of(
        tmp_path,
        [(0, 0.0), (100, 10.0), (300, 30.0)],
        [(0, 0.0), (300, 60.0)],
        [(0, 30.0), (150, 45.0), (300, 60.0)],
    )
    assert curve is not None
    assert [at(curve, steps) for steps in (0, 150, 300)] == pytest.approx([10.0, 30.0, 50.0])
    assert (curve.low[0], curve.high[0]) == (0.0, 30.0)
    assert (curve.low[-1], curve.high[-1]) == (30.0, 60.0)


def test_an_outlying_seed_is_cut_where_there_are_four(tmp_path: Path) -> None:
    lines = [[(0, height), (10, height)] for height in (1.0, 2.0, 4.0, 1000.0)]
    curve = curve_of(tmp_path, *lines)
    assert curve is not None and set(curve.middle.tolist()) == {3.0}


def test_a_curve_begins_where_every_seed_has_ended_an_episode(tmp_path: Path) -> None:
    curve = curve_of(
        tmp_path,
        [(100, None), (200, 2.0), (400, 4.0)],
        [(100, None), (200, None), (300, 3.0), (500, 5.0)],
    )
    assert curve is not None
    assert (curve.steps[0], curve.steps[-1]) == (300.0, 400.0)
    assert curve.middle == pytest.approx(curve.steps / 100)
    assert [line[0].tolist() for line in curve.lines] == [[200.0, 400.0], [300.0, 500.0]]


@pytest.mark.parametrize("other", [[], [(50, None)], [(10, 1.0), (50, 1.0)]])
def test_without_common_steps_there_is_no_curve(tmp_path: Path, other: Points) -> None:
    assert curve_of(tmp_path, [(100, 1.0), (200, 1.0)], other) is None


def test_a_level_is_reached_where_the_middle_is_first_there(tmp_path: Path) -> None:
    curve = curve_of(tmp_path, [(0, 0.0), (1000, 10.0), (2000, 0.0)])
    assert curve is not None
    assert curve.reaches(4.98) == pytest.approx(500.0)
    assert curve.reaches(10.0) == pytest.approx(1000.0)
    assert curve.reaches(10.1) is None


def test_a_single_collection_is_a_single_point(tmp_path: Path) -> None:
    curve = curve_of(tmp_path, [(600, 20.0)], [(600, 30.0)])
    assert curve is not None
    assert (curve.steps.tolist(), curve.middle.tolist()) == ([600.0], [25.0])
