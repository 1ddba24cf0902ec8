"""The addition of `make addition`: what is learned from and what is not, the reward, and one small run."""

import random
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from benchmarks.addition import (
    LEARNING_RATES,
    LONGEST,
    REWARD,
    Accuracy,
    Run,
    Setting,
    accuracy,
    demonstrations,
    imitate,
    learn,
    questions,
    split,
    table,
    untrained,
    written,
)
from benchmarks.document import fill

from trimtab.rollouts.collect import CollectConfig
from trimtab.rollouts.rewards import load_rewards
from trimtab.train import RunConfig

DIGITS = Setting(
    numbers=range(1, 10),
    imitation=RunConfig(steps=80, batch_size=64, learning_rate=4e-3, max_length=LONGEST),
    collect=CollectConfig(prompts=32, samples=8, max_new_tokens=6),
    refreshes=16,
)


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_sums_are_never_learned_from(seed: int) -> None:
    learned, held_out = split(Setting(), seed)
    everything = Counter((a, b) for a in range(10, 100) for b in range(10, 100))
    assert Counter(learned + held_out) == everything
    assert not {frozenset(pair) for pair in learned} & {frozenset(pair) for pair in held_out}
    assert 0.09 < len(held_out) / len(everything) < 0.11
    asked = {record.prompt for record in demonstrations(learned, Setting(), seed) + questions(learned)}
    assert asked.isdisjoint({f"{a}+{b}" for a, b in held_out})


def test_every_seed_holds_out_other_sums() -> None:
    assert set(split(Setting(), 0)[1]) != set(split(Setting(), 1)[1])


def test_with_every_carry_the_sum_is_right_units_first() -> None:
    rng = random.Random(0)
    for a, b in product(range(10, 100), repeat=2):
        assert int(written(a, b, 0.0, rng).removeprefix("=")[::-1]) == a + b
    assert written(75, 75, 0.0, rng) == "=051"


@pytest.mark.parametrize(
    ("a", "b", "digits"), [(12, 34, "64"), (57, 86, "33"), (75, 75, "04"), (99, 99, "88")]
)
def test_without_carries_columns_are_added_alone(a: int, b: int, digits: str) -> None:
    assert written(a, b, 1.0, random.Random(0)) == f"={digits}"


def test_each_carry_is_forgotten_by_itself() -> None:
    """57 + 86 has two carries, each kept with probability 0.2."""
    rng, draws = random.Random(0), 20_000
    found = Counter(written(57, 86, 0.8, rng) for _ in range(draws))
    for answer, chance in {"=33": 0.64, "=331": 0.16, "=34": 0.16, "=341": 0.04}.items():
        assert found.pop(answer) / draws == pytest.approx(chance, abs=0.012)  # 3.5 standard errors
    assert not found


@pytest.mark.parametrize(("a", "b", "right"), [(57, 86, "=341"), (75, 75, "=051"), (10, 10, "=02")])
def test_the_reward_is_1_for_the_right_sum_alone(a: int, b: int, right: str) -> None:
    """051 and 51 are the same number, and other sums."""
    texts = ["", right.removeprefix("="), right + right]
    texts += ["=" + "".join(digits) for n in range(5) for digits in product("0123456789", repeat=n)]
    question = questions([(a, b)])[0]
    columns = {name: [value] * len(texts) for name, value in question.columns.items()}
    scores = load_rewards([REWARD])([question.prompt] * len(texts), texts, columns)
    assert set(scores) == {0.0, 1.0}
    assert [text for text, score in zip(texts, scores, strict=True) if score] == [right]


def test_a_model_that_forgets_carries_learns_to_keep_them() -> None:
    """Of the sums of two digits above 0, 36 in 81 have no carry; the others are right one time in five."""
    learned, _ = split(DIGITS, seed=0)
    asked = questions(learned)
    policy = untrained(seed=0)
    imitate(policy, demonstrations(learned, DIGITS, seed=0), DIGITS.imitation)
    start = accuracy(policy, asked, DIGITS, seed=0)
    refreshes = learn(policy, "grpo", asked, DIGITS, seed=0)
    end = accuracy(policy, asked, DIGITS, seed=0)
    assert start.drawn == pytest.approx((36 + 45 * 0.2) / 81, abs=0.15)
    assert start.greedy == pytest.approx(36 / 81, abs=0.1)
    assert end.drawn > 0.85
    assert end.greedy > 0.9
    assert sum(len(refresh.samples) for refresh in refreshes) == DIGITS.answers == 16 * 32 * 8


def test_the_table_has_a_figure_for_each_seed_and_goes_into_its_own_block(tmp_path: Path) -> None:
    runs = [
        Run(method, seed, Accuracy(0.34, 0.24), Accuracy(0.9 + 0.01 * seed, 1.0), 30.0 + seed)
        for method in LEARNING_RATES
        for seed in (0, 1, 2)
    ]
    (tmp_path / "zh").mkdir()
    other = "<!-- measured: all -->\nkept\n<!-- end -->"
    block = "<!-- measured: addition -->\nold\n<!-- end -->"
    for page in ("a.md", "zh/a.md"):
        (tmp_path / page).write_text(f"{other}\n\n{block}\n", encoding="utf-8")
    fill(lambda name, language: table(runs, Setting(), language) if name == "addition" else None, tmp_path)
    english, chinese = ((tmp_path / page).read_text(encoding="utf-8") for page in ("a.md", "zh/a.md"))
    figures = "| 40,960 | 34 / 34 / 34 % | 90 / 91 / 92 % | 24 / 24 / 24 % | 100 / 100 / 100 % | 31 |"
    assert f"| PPO | 0.001 {figures}" in english
    assert f"| GRPO | 0.002 {figures}" in chinese
    for text, heading in ((english, "| method |"), (chinese, "| 方法 |")):
        assert text.startswith(other)
        assert heading in text
        assert "old" not in text
