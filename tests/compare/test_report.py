"""The page: self-contained, escaped, and with the numbers of the comparison."""

import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from synthetic import add_failure, add_run, write_about, write_film_reviews

from trimtab.compare.report import flatten, write_report

VOID = {"meta", "img", "col", "br", "link", "input"}


class Page(HTMLParser):
    """Collects tags and text, and checks that every element is closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += " ".join(data.split()) + " "

    def row(self, start: str) -> list[str]:
        """The cells of the first table row whose first cell starts with the given words."""
        rows = [[" ".join(cell.split()) for cell in row] for row in self.rows if row]
        return next(row for row in rows if row[0].startswith(start))

    def plots(self) -> list[str]:
        sources = [attrs["src"] or "" for tag, attrs in self.tags if tag == "img"]
        return [b64decode(source.removeprefix("data:image/svg+xml;base64,")).decode() for source in sources]


@pytest.fixture(scope="module")
def film_reviews(tmp_path_factory: pytest.TempPathFactory) -> Page:
    out = tmp_path_factory.mktemp("comparison")
    write_film_reviews(out, methods=("dpo", "ipo"), strengths=(0.03, 0.3), seeds=2, prompts=40)
    add_failure(out, "kto", "the loss became NaN; lower the learning rate")
    (out / "config.json").write_text('{"model": "reviews"}')
    return Page(write_report(out))


def test_nothing_is_loaded_from_elsewhere(film_reviews: Page) -> None:
    assert {tag for tag, _ in film_reviews.tags}.isdisjoint(
        {"script", "link", "iframe", "object", "base", "form"}
    )
    for _, attrs in film_reviews.tags:
        assert not {name for name in attrs if name.startswith("on") or name in ("href", "srcset", "action")}
        assert (attrs.get("src") or "data:").startswith("data:")
    assert not re.search(r"https?:|url\(|@import", film_reviews.source)
    policy = next(attrs["content"] for tag, attrs in film_reviews.tags if "http-equiv" in attrs)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_every_plot_is_there_and_is_svg(film_reviews: Page) -> None:
    plots = film_reviews.plots()
    assert len(plots) == 7  # frontier, gold-proxy, length, sweep, matrix, loss, margin
    for plot in plots:
        root = ElementTree.fromstring(plot)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "nan" not in " ".join(text for text in root.itertext()).lower()
    assert "KL to the start (nats per response)" in plots[0]
    assert all(attrs.get("alt") for tag, attrs in film_reviews.tags if tag == "img")


def test_all_parts_are_there(film_reviews: Page) -> None:
    for words in (
        "wins: gold reward", "All strengths", "Who beats whom", "Samples to read", "Failed runs",
        "kto/beta=0.1/seed=0", "the loss became NaN; lower the learning rate", "held out pair accuracy",
        "0.71 (0.67 to 0.75, n = 480)", "one half of the held-out prompts (20)", "learning_rate: 0.0005",
        "model: reviews", "2.13.0",
    ):  # fmt: skip
        assert words in film_reviews.text
    shown = [attrs for tag, attrs in film_reviews.tags if tag == "article"]
    assert len(shown) == 20  # every reported prompt: 12 at once, 8 to unfold
    assert "StrictUndefined" not in film_reviews.text


def test_the_table_holds_the_numbers(tmp_path: Path) -> None:
    write_about(tmp_path, rewards=["gold"])
    add_run(tmp_path, "start", [0.1, 0.2, 0.3, 0.4])
    add_run(tmp_path, "dpo", [0.3, 0.3, 0.3, 0.9], strength=0.1, kl=[2.0, 2.0, 2.0, 4.0])
    page = Page(write_report(tmp_path))
    name, gold, gain, _, wins, kl, tokens, distinct, seconds, memory = page.row("DPO")
    assert name == "DPO best beta 0.1"
    assert gold.startswith("0.45 0.30 to 0.")
    assert gain.startswith("+0.20 ")
    assert wins.startswith("88 % ")  # win, win, tie, win
    assert kl == "2.5 ± 0.5"
    assert (tokens, distinct, seconds, memory) == ("4.8", "1.00", "10", "512")
    assert page.row("start")[:3] == ["start starting model", page.row("start")[1], "–"]
    assert page.row("start")[1].startswith("0.25 ")


def test_what_models_and_users_write_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>&amp;"
    chat = [{"role": "user", "content": evil}]
    write_about(tmp_path, rewards=["gold"], name=evil, base=evil, data={evil: evil})
    for method, strength in (("start", None), ("dpo", 0.1)):
        add_run(tmp_path, method, [0.1, 0.9], strength=strength, responses=[evil] * 2, prompts=[chat, chat])
    add_failure(tmp_path, "kto", evil)
    page = Page(write_report(tmp_path))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script"})
    assert all((attrs["src"] or "").startswith("data:") for tag, attrs in page.tags if tag == "img")
    assert page.text.count(evil) >= 8


def test_names_are_escaped_inside_plots(tmp_path: Path) -> None:
    evil = "a</text><script>"
    write_about(tmp_path, rewards=[evil])
    for method, strength in (("start", None), ("dpo", 0.1)):
        add_run(tmp_path, method, [{evil: 0.5}, {evil: 0.6}], strength=strength)
    for plot in Page(write_report(tmp_path)).plots():
        assert "<script>" not in plot
        ElementTree.fromstring(plot)


def test_a_comparison_with_only_failures_has_a_page(tmp_path: Path) -> None:
    write_about(tmp_path)
    add_failure(tmp_path, "dpo", "out of memory")
    page = Page(write_report(tmp_path))
    assert "No run has finished yet" in page.text
    assert "out of memory" in page.text
    assert page.plots() == []


def test_one_prompt_without_kl_has_a_page_without_nan(tmp_path: Path) -> None:
    write_about(tmp_path, rewards=["gold"])
    add_run(tmp_path, "start", [0.25])
    add_run(tmp_path, "orpo", [0.75], strength=0.1)
    page = Page(write_report(tmp_path))
    assert "nan" not in page.text.lower()
    assert len(page.plots()) == 2  # reward against length, who beats whom


def test_the_same_folder_gives_the_same_page(tmp_path: Path) -> None:
    write_film_reviews(tmp_path, methods=("dpo",), strengths=(0.1, 0.3), seeds=1, prompts=8)
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first


def test_settings_are_flattened() -> None:
    settings = {
        "a": {"b": 12345, "c": [1, True]},
        "d": None,
        "e": {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 10},
    }
    assert flatten(settings) == [
        ("a.b", "12,345"),
        ("a.c", "1, yes"),
        ("d", "–"),
        ("e", "0.50 (0.25 to 0.75, n = 10)"),
    ]
