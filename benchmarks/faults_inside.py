"""Faults within a run: rewards that fail, gradients that are no numbers, signals, a second process."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults_files import PLAIN, dpo
from benchmarks.faults_ground import (
    AT_ONCE,
    ONE,
    RESUMES,
    STOPS,
    Ground,
    Row,
    at_line,
    send,
)
from benchmarks.faults_runs import Action, Child

RIGHT = "def score(prompts, responses):\n    return [-abs(len(r) - 20.0) for r in responses]\n"
# what the third call does, in place of the right scores
WRONG = {
    "raise ValueError('no luck')": (("reward: raises an error", "奖励：抛出异常"), "no luck"),
    "time.sleep(600)": (
        ("reward: hangs (--reward-timeout 5)", "奖励：卡住（--reward-timeout 5）"),
        "took longer",
    ),
    "scores[0] = float('nan')": (("reward: returns NaN", "奖励：返回 NaN"), "must be a finite number"),
    "scores.pop()": (("reward: returns too few scores", "奖励：分数个数不够"), "scores for"),
}
CONTROL = ["--env", "CartPole-v1", "--envs", "2", "--steps", "64", "--total-steps", "1280", "--hidden", "16"]


def rows(ground: Ground) -> Iterator[Row]:
    """Every fault of this file."""
    for wrong, (name, said) in WRONG.items():
        yield failing_reward(ground, wrong, Row(name, RESUMES), said)
    offline = dpo(ground.material / "pairs.jsonl")
    control = ["train", "ppo", *CONTROL]
    yield not_finite(ground, offline, ("gradient: NaN (dpo)", "梯度：NaN（dpo）"))
    yield not_finite(ground, control, ("gradient: NaN (ppo, CartPole-v1)", "梯度：NaN（ppo，CartPole-v1）"))
    yield left_out(ground, [*offline, "--non-finite", "skip"])
    for number in (signal.SIGINT, signal.SIGTERM):
        yield one_signal(ground, offline, control, number)
    for number in (signal.SIGINT, signal.SIGTERM):
        yield two_signals(ground, offline, number)
    yield second_process(ground, offline)
    yield same_moment(ground, offline)
    yield one_signal_in_a_comparison(ground)
    yield killed_worker(ground)


def failing_reward(ground: Ground, wrong: str, row: Row, said: str) -> Row:
    """The third collection's scores are not to be had."""
    place = ground.folder("-reward")
    place.mkdir()
    reward = place / "reward.py"
    head, _ = RIGHT.split("    return")
    broken = f"import time\ncalls = []\n{head}    scores = [-abs(len(r) - 20.0) for r in responses]\n"
    broken += f"    calls.append(1)\n    if len(calls) > 2:\n        {wrong}\n    return scores\n"
    words = online(ground, "grpo", f"{reward}:score")
    reward.write_text(RIGHT)
    ground.through(words)
    folder = ground.folder()
    reward.write_text(broken)
    row.hear(ground.run(words, folder), folder, 2, said, "goes on from here")
    row.said = row.said.replace(str(reward), "reward.py")
    row.expect(len((folder / "metrics.jsonl").read_text().splitlines()) == 2, "not two collections behind")
    reward.write_text(RIGHT)
    ground.same(row, folder, words)
    return row


def online(ground: Ground, method: str, reward: str) -> list[str]:
    """A short run on own answers."""
    files = ["--model", "reviews", "--data", str(ground.material / "pairs.jsonl"), "--reward", reward]
    sizes = ["--refreshes", "4", "--prompts", "2", "--samples", "2", "--max-new-tokens", "6"]
    return ["train", method, *files, *sizes, *PLAIN, "--reward-timeout", "5"]


def nan_at(number: int) -> Action:
    """Puts a NaN into a gradient, once, at this update."""

    def before() -> None:
        from trimtab import learner, train

        backward, calls = train.backward, iter(range(1, 10**9))

        def wrong(method: object, policy: object, batches: list[object]) -> object:
            found = backward(method, policy, batches)  # type: ignore[arg-type]
            if next(calls) == number:
                policy.parameters()[0].grad.view(-1)[0] = float("nan")  # type: ignore[attr-defined]
            return found

        train.backward = learner.backward = wrong  # type: ignore[assignment]

    return before


def not_finite(ground: Ground, words: list[str], name: tuple[str, str]) -> Row:
    row = Row(name, RESUMES)
    folder = ground.folder()
    row.hear(ground.run(words, folder, nan_at(5)), folder, 2, "is not a finite number", "goes on from here")
    for file in ("metrics.json", "parameters.json", "values.safetensors", "samples.jsonl"):
        row.expect((folder / "non-finite" / file).exists(), f"RUN/non-finite has no {file}")
    ground.same(row, folder, words, "non-finite")
    return row


def left_out(ground: Ground, words: list[str]) -> Row:
    """Left out in the uninterrupted run, too: what is compared is a run that stops after it and goes on."""
    import json

    promised = ("the step is left out and counted, also when resumed", "跳过这一步并计数，继续之后也不变")
    row = Row(("gradient: NaN, --non-finite skip", "梯度：NaN，--non-finite skip"), promised)
    expected = ground.folder()
    row.expect(ground.run(words, expected, nan_at(2)).status == 0, "did not come to its end")
    folder = ground.folder()

    def both() -> None:
        nan_at(2)()
        at_line(4, send(signal.SIGTERM))()

    row.expect(ground.run(words, folder, both).status == 143, "did not stop")
    row.expect(ground.resume(folder).status == 0, "did not go on")
    curves = [[json.loads(line) for line in (at / "metrics.jsonl").open()] for at in (expected, folder)]
    for rows in curves:
        row.expect([r["skipped"] for r in rows] == [0, 1, 1, 1, 1, 1], f"counted {rows}")
    row.expect([r["loss"] for r in curves[0]] == [r["loss"] for r in curves[1]], "other losses")
    weights = [(at / "model.safetensors").read_bytes() for at in (expected, folder)]
    row.expect(weights[0] == weights[1], "other weights")
    row.said = f"skipped {curves[1][-1]['skipped']}"
    return row


def one_signal(ground: Ground, offline: list[str], control: list[str], number: signal.Signals) -> Row:
    """It comes during a step: that step is the last."""
    status = 128 + number
    row = Row(
        (f"{number.name}", f"{number.name}"), (STOPS[0].format(status), STOPS[1].format(status)), tries=3
    )
    answers = online(ground, "grpo", "length:20")
    for words, line in ((offline, 3), (control, 5), (answers, 2)):
        folder = ground.folder()
        ended = ground.run(words, folder, at_line(line, send(number)))
        row.hear(ended, folder, status, "goes on from here")
        written = len((folder / "metrics.jsonl").read_text().splitlines())
        row.expect(written == line, f"{written} lines of the curve, not {line}")
        ground.same(row, folder, words)
    return row


def two_signals(ground: Ground, words: list[str], number: signal.Signals) -> Row:
    row = Row((f"{number.name}, twice", f"{number.name}，两次"), AT_ONCE)
    folder = ground.folder()
    ended = ground.run(words, folder, at_line(3, send(number, 2)))
    row.hear(ended, folder, 130, "interrupted")
    names = sorted(path.name for path in folder.glob("checkpoints/*"))
    row.expect(names == ["00000001-000000", "00000002-000000"], f"checkpoints: {names}")
    ground.same(row, folder, words)
    return row


def second_process(ground: Ground, words: list[str]) -> Row:
    """Resumes while the run is under way: one that waits in its third step."""
    row = Row(("a second process resumes it", "第二个进程继续同一次训练"), ONE)
    folder = ground.folder()
    first = ground.begin([*words, "--out", str(folder)], at_line(3, lambda: time.sleep(8)))
    _wait_for(first, folder / "checkpoints" / "00000002-000000")
    row.hear(ground.resume(folder), folder, 2, "another process is training there")
    again = ground.run(words, folder)
    row.expect(again.status == 2 and f"trimtab resume {folder}" in again.said, again.said)
    row.expect(first.wait().status == 0, "the first did not come to its end")
    ground.is_same(row, folder, words)
    return row


def _wait_for(child: Child, path: Path) -> None:
    while child.look() is None and not path.exists():
        time.sleep(0.01)


def same_moment(ground: Ground, words: list[str], tries: int = 3) -> Row:
    """Two processes begin at the same moment: both have looked at the folder before either writes."""
    row = Row(("two processes begin in one folder", "两个进程同时在一个文件夹里开始"), ONE, tries=tries)
    for _ in range(tries):
        folder, ready = ground.folder(), ground.folder("-ready")
        ready.mkdir()

        def wait(ready: Path = ready) -> None:
            from trimtab import recorder

            refuse = recorder.refuse_existing

            def together(out: Path) -> None:
                import os

                refuse(out)
                (ready / f"{os.getpid()}").touch()
                while len(list(ready.iterdir())) < 2:
                    pass

            recorder.refuse_existing = together

        children = [ground.begin([*words, "--out", str(folder)], wait) for _ in range(2)]
        ended = sorted((child.wait() for child in children), key=lambda e: e.status)
        row.hear(ended[1], folder, 2)
        row.expect(ended[0].status == 0, f"the other: {ended[0].said}")
        ground.is_same(row, folder, words)
    return row


def one_signal_in_a_comparison(ground: Ground) -> Row:
    """Ctrl-C reaches every process of the terminal."""
    import os

    row = Row(("SIGINT to a comparison", "对比较发送 SIGINT"), AT_ONCE)
    words = ["compare", str(ground.material / "comparison.yaml")]
    folder = ground.folder()
    child = ground.begin([*words, "--out", str(folder)])
    _wait_for(child, folder / "results.jsonl")
    os.killpg(child.pid, signal.SIGINT)
    row.hear(child.wait(), folder, 130, "the same command goes on where it stopped")
    ground.same(row, folder, words)
    return row


def killed_worker(ground: Ground) -> Row:
    """The system ends the process of one run, as it does for want of memory."""
    promised = (
        "that run fails, the others go on; resumed to the same result",
        "那次训练失败，其他照常；继续后结果相同",
    )
    row = Row(("one run of a comparison is killed", "比较中的一次训练被杀死"), promised)
    words = ["compare", str(ground.material / "comparison.yaml")]
    folder = ground.folder()

    def deadly() -> None:
        import os

        from trimtab.compare import worker

        train = worker._train

        def die(cell: worker.Cell, *given: object) -> object:
            if cell.run.method == "grpo":
                os.kill(os.getpid(), signal.SIGKILL)
            return train(cell, *given)  # type: ignore[arg-type]

        worker._train = die  # type: ignore[assignment]

    ended = ground.run(words, folder, deadly)
    row.hear(ended, folder, 0, "its process was killed")
    row.said = "failed: its process was killed, most likely for want of memory; try fewer --jobs"
    row.expect(ground.resume(folder).status == 0, "did not go on")
    from benchmarks.faults_runs import left

    found, expected = left(folder), ground.through(words)
    lines = [line for line in found.pop("results.jsonl") if '"failed"' not in line]
    row.expect(lines == expected["results.jsonl"], "other results")
    wrong = [name for name in found if found[name] != expected.get(name)]
    row.expect(not wrong, f"{wrong} differ from the uninterrupted comparison's")
    return row
