"""What the plots show, read back from their text and colours."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from synthetic import add_run, write_about, write_film_reviews

from trimtab.compare import plots
from trimtab.compare.summary import load_comparison


def words(svg: str | None) -> list[str]:
    assert svg is not None
    return [text.strip() for text in ElementTree.fromstring(svg).itertext() if text.strip()]


def test_methods_keep_their_colour_and_differ(tmp_path: Path) -> None:
    methods = ("dpo", "ipo", "kto", "orpo", "simpo", "ppo", "grpo", "rloo", "a2c", "trpo", "x", "y", "z", "w")
    write_film_reviews(tmp_path, methods=methods, strengths=(0.1,), seeds=1, prompts=4)
    comparison = load_comparison(tmp_path)
    styles = [plots.method_style(comparison, method) for method in methods]
    assert len(set(styles)) == 14
    figure, sweep = plots.frontier(comparison), plots.strength_sweep(comparison)
    assert figure is not None
    assert all(colour in figure for colour, _ in styles)
    assert sweep is None  # one strength is no sweep
    assert words(figure).count("DPO") == 1


def test_the_frontier_needs_kl(tmp_path: Path) -> None:
    write_about(tmp_path, rewards=["gold"])
    add_run(tmp_path, "start", [0.1, 0.2])
    add_run(tmp_path, "dpo", [0.3, 0.4], strength=0.1)
    assert plots.frontier(load_comparison(tmp_path)) is None


def test_the_matrix_shows_the_rates(tmp_path: Path) -> None:
    write_about(tmp_path, rewards=["gold"])
    add_run(tmp_path, "start", [0.5, 0.5, 0.5, 0.5])
    add_run(tmp_path, "dpo", [0.9, 0.9, 0.9, 0.1], strength=0.1)
    shown = words(plots.win_matrix(load_comparison(tmp_path)))
    assert "0.75" in shown
    assert "0.25" in shown


def test_the_sweep_has_the_strengths_as_ticks_and_a_panel_for_each_reward(tmp_path: Path) -> None:
    write_film_reviews(tmp_path, methods=("dpo", "ipo"), strengths=(0.07, 0.33), seeds=1, prompts=6)
    shown = words(plots.strength_sweep(load_comparison(tmp_path)))
    assert shown.count("0.07") == shown.count("0.33") == 2
    assert {"gold reward", "proxy reward", "beta", "DPO", "IPO", "start"} <= set(shown)


@pytest.mark.parametrize("strengths", [(0.0, 0.1), (0.0, -1.0)])
def test_a_strength_of_zero_has_a_place(tmp_path: Path, strengths: tuple[float, ...]) -> None:
    write_about(tmp_path, rewards=["gold"])
    for strength in strengths:
        add_run(tmp_path, "dpo", [0.3, 0.4], strength=strength)
    assert "0" in words(plots.strength_sweep(load_comparison(tmp_path)))


def test_curves_of_seeds_that_stopped_early_are_drawn(tmp_path: Path) -> None:
    write_about(tmp_path, rewards=["gold"])
    add_run(tmp_path, "dpo", [0.3, 0.4], strength=0.1, seed=0, losses=[0.7, 0.6, 0.5])
    add_run(tmp_path, "dpo", [0.3, 0.4], strength=0.1, seed=1, losses=[0.7])
    comparison = load_comparison(tmp_path)
    assert "DPO (beta 0.1)" in words(plots.curves(comparison, "loss"))
    assert plots.curves(comparison, "accuracy") is None
