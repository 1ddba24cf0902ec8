"""The page, its plots and the printed table: self-contained, escaped, with the numbers of the comparison."""

import re
from base64 import b64decode
from pathlib import Path
from xml.etree import ElementTree

import pytest
from made_up import Page, add_failure, add_run, add_runs, write_about
from rich.console import Console

from trimtab.compare.control import plots
from trimtab.compare.control.report import write_control_report
from trimtab.compare.control.summary import load_control_comparison
from trimtab.compare.control.table import control_table
from trimtab.compare.plots import COLOURS

SVG = "data:image/svg+xml;base64,"


def write_two_environments(out: Path, seeds: int = 3) -> None:
    write_about(out, ["Hill", "Lake"])
    for env, top in (("Hill", 100.0), ("Lake", -80.0)):
        for seed in range(seeds):
            add_run(out, "start", top - 90, env=env, seed=seed)
            for clip, loss in ((0.2, 0.0), (1000.0, 40.0)):
                curve = [(100, None), (200, top - 80), (1000, top - loss + seed)]
                add_run(out, "ppo", top - loss + seed, env=env, seed=seed, curve=curve, clip=clip)
            add_run(out, "a2c", top - 60 - seed, env=env, seed=seed, curve=[(50, top - 90), (1000, top - 60)])


def svgs(page: Page) -> list[str]:
    assert all(image.startswith(SVG) for image in page.images())
    return [b64decode(image.removeprefix(SVG)).decode() for image in page.images()]


def words(svg: str | None) -> list[str]:
    assert svg is not None
    return [text.strip() for text in ElementTree.fromstring(svg).itertext() if text.strip()]


def test_the_page_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    write_two_environments(tmp_path)
    page = Page(write_control_report(tmp_path))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    for _, attrs in page.tags:
        assert not {name for name in attrs if name.startswith("on") or name in ("href", "srcset", "action")}
    assert not re.search(r"https?:|url\(|@import", page.source)
    policy = next(attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    matrix, *curves = svgs(page)
    assert "0.61–1.00" in words(matrix)  # Wilson's interval of 6 wins of 6: 6 / (6 + 1.96^2)
    for curve in curves:
        assert {"ppo (clip 0.2)", "ppo (clip 1000)", "a2c", "untrained"} <= set(words(curve))
        assert "nan" not in curve.lower()
    assert len(curves) == 2


def test_the_tables_hold_the_numbers(tmp_path: Path) -> None:
    write_two_environments(tmp_path)
    page = Page(write_control_report(tmp_path))
    first, *_ = [row for row in page.rows if row[0].startswith("ppo")]
    assert first[0] == "ppo highest clip 0.2, 3 seeds"
    assert first[1].startswith("1.00 0.9") and first[3:] == ["1.00", "1.00"]
    hill = [row for row in page.rows if len(row) == 9]
    ppo, other, a2c, start = hill[1:5]
    assert ppo[0] == "ppo highest clip 0.2, 3 seeds"
    assert ppo[1:2] + ppo[3:6] == ["101.0 100.0 to 102.0", "101.0", "100.0", "100.0"]
    # 10 + 0.9 * 91 = 91.9, on a line from 20 at 200 to 101 at 1000; a point of the curve is 4 steps
    assert ppo[6:] == ["912", "4.0", "250"]
    assert other[6] == "not reached"
    assert (a2c[0], a2c[1]) == ("a2c 3 seeds", "39.0 38.0 to 40.0")
    assert (start[0], start[1], start[6]) == ("untrained 3 seeds", "10.0 10.0 to 10.0", "–")


def test_the_first_words_are_the_verdict_and_what_intervals_are_worth(tmp_path: Path) -> None:
    write_two_environments(tmp_path)
    text = Page(write_control_report(tmp_path)).text
    assert "ppo (clip 0.2) is ahead of ppo (clip 1000) and a2c on Hill and Lake together." in text
    assert "two equal methods look different in one environment up to 10 times in 100" in text
    assert "total steps" in text and "runs at a time" in text


@pytest.mark.parametrize(
    ("seeds", "sentence"),
    [
        (1, "With one seed there are no intervals"),
        (2, "Intervals from two seeds are far too narrow, so nothing is called ahead here."),
        (4, "look different in one environment up to 3 times in 100"),
        (5, "“Ahead” means that the interval of the difference lies above zero."),
    ],
)
def test_the_page_says_what_so_many_seeds_support(seeds: int, sentence: str, tmp_path: Path) -> None:
    write_two_environments(tmp_path, seeds)
    page = Page(write_control_report(tmp_path))
    assert sentence in page.text
    assert ("times in 100" in page.text) == (seeds == 4)
    assert "nan" not in page.text.lower()
    if seeds == 1:
        assert " to " not in page.row("ppo")[1]
        assert not any("–" in word and word != "–" for svg in svgs(page) for word in words(svg))


def test_one_environment_keeps_its_own_unit_and_has_the_matrix(tmp_path: Path) -> None:
    write_about(tmp_path)
    add_runs(tmp_path, "start", [1.0, 2.0, 3.0])
    add_runs(tmp_path, "ppo", [4.0, 5.0, 6.0], curve=[(10, 1.0), (20, 2.0)])
    page = Page(write_control_report(tmp_path))
    assert "All environments together" not in page.text
    assert len(page.images()) == 2 and "Probability of improvement" in page.text
    assert page.row("ppo")[1] == "5.00 4.00 to 6.00"


def test_unequal_training_is_said(tmp_path: Path) -> None:
    write_about(tmp_path)
    add_run(tmp_path, "ppo", 5.0, total_steps=50_000)
    add_run(tmp_path, "a2c", 4.0, total_steps=500_000)
    text = Page(write_control_report(tmp_path)).text
    assert "trained for different numbers of steps: 50,000 (ppo); 500,000 (a2c)." in text
    add_run(tmp_path, "a2c", 4.0, total_steps=50_000)
    assert "different numbers of steps" not in Page(write_control_report(tmp_path)).text


def test_an_environment_without_gain_is_named(tmp_path: Path) -> None:
    write_two_environments(tmp_path)
    add_runs(tmp_path, "start", [1.0, 1.0, 1.0], env="Bog")
    add_runs(tmp_path, "ppo", [0.0, 0.0, 0.0], env="Bog", clip=0.2)
    text = Page(write_control_report(tmp_path)).text
    assert "left out Bog: there no method scored above the untrained policy" in text


def test_failed_runs_are_listed_and_everything_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>&amp;"
    write_about(tmp_path, [evil], name=evil, settings={evil: evil})
    (tmp_path / "config.json").write_text('{"name": "<script>"}')
    add_runs(tmp_path, "ppo", [1.0, 2.0, 3.0], env=evil, choice="</text><script>", curve=[(1, 1.0), (2, 2.0)])
    add_run(tmp_path, "ppo", 2.0, env=evil, choice="b")
    add_failure(tmp_path, "a2c", evil)
    page = Page(write_control_report(tmp_path))
    assert "script" not in {tag for tag, _ in page.tags}
    assert all("<script>" not in svg for svg in svgs(page))
    assert "Failed runs" in page.text and page.text.count(evil) >= 7


def test_a_comparison_with_only_failures_has_a_page(tmp_path: Path) -> None:
    write_about(tmp_path)
    add_failure(tmp_path, "ppo", "the loss became NaN")
    page = Page(write_control_report(tmp_path))
    assert "No run has finished yet" in page.text and page.row("Hill/ppo")[1] == "the loss became NaN"
    assert page.images() == []


def test_an_unfinished_comparison_has_a_page(tmp_path: Path) -> None:
    """The untrained run of one environment, and one method in the other."""
    write_about(tmp_path, ["Hill", "Lake"])
    add_run(tmp_path, "start", 0.0, env="Lake")
    add_run(tmp_path, "ppo", 1.0, env="Hill", curve=[(10, 1.0)])
    page = Page(write_control_report(tmp_path))
    assert "ppo has the highest score on Hill" in page.text
    assert page.row("ppo")[1] == "1.00"


def test_the_same_folder_gives_the_same_page(tmp_path: Path) -> None:
    write_two_environments(tmp_path)
    first = write_control_report(tmp_path).read_bytes()
    assert write_control_report(tmp_path).read_bytes() == first


def test_methods_keep_their_colour_and_beyond_eight_change_their_line(tmp_path: Path) -> None:
    write_about(tmp_path)
    for clip in range(1, 11):
        add_run(tmp_path, "ppo", float(clip), clip=clip)
    comparison = load_control_comparison(tmp_path)
    looks = [plots.style(comparison, contender) for contender in comparison.contenders]
    assert [colour for colour, _ in looks] == [*COLOURS, *COLOURS[:2]]
    assert len({str(look) for look in looks}) == 10


def test_the_threshold_does_not_press_the_curves_together(tmp_path: Path) -> None:
    """Training returns of about 1, while the deterministic episodes earn 1000."""
    write_about(tmp_path)
    add_run(tmp_path, "start", 0.0)
    add_run(tmp_path, "ppo", 1000.0, curve=[(0, 0.0), (10, 1.0)])
    shown = words(plots.learning_curves(load_control_comparison(tmp_path), "Hill"))
    assert "90 % of the way" in shown and "untrained" in shown
    assert max(float(word) for word in shown if re.fullmatch(r"[\d.]+", word) and "." in word) <= 1.2


def test_the_printed_table_is_at_most_100_columns_wide(tmp_path: Path) -> None:
    write_two_environments(tmp_path)
    add_failure(tmp_path, "trpo", "the surrogate loss is not a finite number")
    console = Console(width=100, record=True, file=(tmp_path / "log").open("w"))
    console.print(control_table(tmp_path))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 100
    rows = [" ".join(line.split()) for line in lines]
    for expected in (
        "* ppo (clip 0.2) 3 101.0 (100.0 to 102.0) 100.0 100.0 912 4 250",
        "Lake",
        "untrained 3 −170.0 (−170.0 to −170.0) −170.0 −170.0 – – –",
        "* ppo (clip 0.2) 3 1.00 (0.99 to 1.01)",
    ):
        assert expected in rows
    assert any("failed: Hill/trpo/seed=0: the surrogate loss" in line for line in lines)
