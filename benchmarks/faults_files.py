"""Faults of disks and files: full, read-only, damaged, changed."""

import errno
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import copytree

from benchmarks.faults_ground import (
    AGAIN,
    OLDER,
    REFUSES,
    RESUMES,
    Ground,
    Row,
    at_line,
    mounted,
    small_files,
    stopped,
)
from benchmarks.faults_runs import Ended

PLAIN = ["--precision", "fp32", "--device", "cpu", "--save-every", "1"]
SIZES = ["--steps", "6", "--batch-size", "4", "--learning-rate", "1e-4"]
FILES = ("state.json", "tensors.safetensors", "sums.json")


def dpo(data: Path, model: str = "reviews") -> list[str]:
    """A short run on recorded feedback."""
    return ["train", "dpo", "--model", model, "--data", str(data), *PLAIN, *SIZES]


def rows(ground: Ground) -> Iterator[Row]:
    """Every fault of this file."""
    words = dpo(ground.material / "pairs.jsonl")
    yield full_at_a_checkpoint(ground, words)
    yield full_at_the_end(ground, words)
    yield full_at_the_start(ground, words)
    yield full_at_the_curve(ground, words)
    yield from read_only(ground, words)
    for file in FILES:
        yield damaged(ground, words, file, "truncated")
        yield damaged(ground, words, file, "flipped")
    yield all_damaged(ground, words)
    yield short_curve(ground, words)
    yield changed_data(ground)
    yield from changed_model(ground)
    yield from changed_options(ground, words)


def full_at_a_checkpoint(ground: Ground, words: list[str]) -> Row:
    """The first checkpoint fits, the second or third does not."""
    with mounted(ground.folder("-disk"), "100m") as options:
        row = Row(("", ""), RESUMES)
        if options is None:
            row.fault = ("checkpoint: no file may be so large", "检查点：文件大小超出限额")
            folder, limit = ground.folder(), at_line(2, small_files(10**7))
        else:
            row.fault = ("checkpoint: the disk is full", "检查点：磁盘已满")
            folder, limit = ground.out / f"{next(ground.numbers) - 1:03d}-disk" / "run", None
        row.hear(ground.run(words, folder, limit), folder, 2, "a checkpoint could not be written")
        row.expect(not list(folder.glob("checkpoints/.*")), "what was half written was left on the full disk")
        if options is not None:
            row.expect(options("size=400m"), "no larger disk")
        ground.same(row, folder, words)
    return row


def full_at_the_end(ground: Ground, words: list[str]) -> Row:
    """Checkpoints fit, the model does not: a file fills the disk just before."""
    row = Row(("final model: the disk is full", "最终模型：磁盘已满"), RESUMES)
    with mounted(ground.folder("-disk"), "200m") as options:
        disk = ground.out / f"{next(ground.numbers) - 1:03d}-disk"
        folder, filler = disk / "run", disk / "filler"

        def fill() -> None:
            from trimtab.recorder import Recorder

            finish = Recorder.finish

            def full(self: Recorder, *given: object) -> None:
                (small_files(10**6) if options is None else lambda: _fill(filler))()
                finish(self, *given)  # type: ignore[arg-type]

            Recorder.finish = full  # type: ignore[method-assign, assignment]

        row.hear(ground.run(words, folder, fill), folder, 1, "disk" if options else "larger")
        filler.unlink(missing_ok=True)
        ground.same(row, folder, words)
    return row


def _fill(file: Path) -> None:
    """Writes until the disk says that it is full; raises OSError if it says anything else."""
    try:
        with file.open("wb", buffering=0) as handle:
            while True:
                handle.write(bytes(1 << 16))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def full_at_the_start(ground: Ground, words: list[str]) -> Row:
    """Not even the options can be written."""
    row = Row(("start: the disk is full", "开始：磁盘已满"), AGAIN)
    with mounted(ground.folder("-disk"), "200m") as options:
        disk = ground.out / f"{next(ground.numbers) - 1:03d}-disk"
        folder, filler = disk / "run", disk / "filler"
        if options is not None:
            _fill(filler)
        ended = ground.run(words, folder, None if options else small_files(10))
        row.hear(ended, folder, 1)
        filler.unlink(missing_ok=True)
        row.expect(ground.run(words, folder).status == 0, "the same command does not work afterwards")
        ground.is_same(row, folder, words)
    return row


def full_at_the_curve(ground: Ground, words: list[str]) -> Row:
    """A line is cut off in its midst; there are checkpoints behind it."""
    row = Row(("curve: a line is cut off by a limit on files", "曲线：写到一半时文件大小受限"), RESUMES)
    folder = ground.folder()
    seldom = [*words, "--save-every", "2"]

    def limit() -> None:
        small_files((folder / "metrics.jsonl").stat().st_size + 10)()

    row.hear(ground.run(seldom, folder, at_line(3, limit)), folder, 1, "a file may not grow larger")
    ground.same(row, folder, seldom)
    return row


def read_only(ground: Ground, words: list[str]) -> Iterator[Row]:
    """A disk that can be read only, at the start and when the run goes on."""
    with mounted(ground.folder("-disk"), "400m") as options:
        if options is None:
            return
        disk = ground.out / f"{next(ground.numbers) - 1:03d}-disk"
        row = Row(("start: the folder is read-only", "开始：文件夹只读"), AGAIN)
        folder = disk / "run"
        options("ro")
        row.hear(ground.run(words, folder), folder, 1, "the disk is read-only")
        options("rw")
        row.expect(ground.run(words, folder).status == 0, "the same command does not work afterwards")
        ground.is_same(row, folder, words)
        yield row
        row = Row(("resume: the folder is read-only", "继续：文件夹只读"), RESUMES)
        place = stopped(ground, words)
        folder = disk / "second"
        copytree(place, folder)
        options("ro")
        row.hear(ground.resume(folder), folder, 1, "the disk is read-only")
        options("rw")
        ground.same(row, folder, words)
        yield row


def damaged(ground: Ground, words: list[str], file: str, how: str, tries: int = 2) -> Row:
    """The newest checkpoint, damaged at random places."""
    names = {"truncated": ("cut off", "被截断"), "flipped": ("with one bit flipped", "翻转一个比特")}[how]
    row = Row((f"{file}: {names[0]}", f"{file}：{names[1]}"), OLDER, tries=tries)
    chance = random.Random(f"{file} {how}")
    source = stopped(ground, words)
    for _ in range(tries):
        folder = ground.folder()
        copytree(source, folder)
        path = sorted(folder.glob("checkpoints/*"))[-1] / file
        content = bytearray(path.read_bytes())
        place = chance.randrange(len(content))
        if how == "flipped":
            content[place] ^= 1 << chance.randrange(8)
        path.write_bytes(content if how == "flipped" else content[:place])
        ended = ground.resume(folder)
        row.hear(ended, folder, 0, "is damaged", "the one before it is used")
        ground.is_same(row, folder, words)
    row.said = "[WARNING] RUN/checkpoints/… is damaged (…); the one before it is used"
    return row


def all_damaged(ground: Ground, words: list[str]) -> Row:
    row = Row(("every checkpoint: one bit flipped", "所有检查点：各翻转一个比特"), ("refused", "拒绝"))
    folder = stopped(ground, words)
    for path in folder.glob("checkpoints/*/tensors.safetensors"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    row.hear(ground.resume(folder), folder, 2, "every checkpoint is damaged")
    return row


def short_curve(ground: Ground, words: list[str]) -> Row:
    """metrics.jsonl lost lines that a checkpoint counts on."""
    row = Row(("metrics.jsonl: lines are gone", "metrics.jsonl：丢了几行"), REFUSES)
    folder = stopped(ground, words)
    file = folder / "metrics.jsonl"
    _change(ground, row, file, "".join(file.read_text().splitlines(True)[:2]), folder, "when the checkpoint")
    ground.same(row, folder, words)
    return row


def _change(
    ground: Ground, row: Row, file: Path, text: str | bytes, folder: Path, *said: str, status: int = 2
) -> Ended:
    """Changes a file, resumes, which must be refused, and puts it back."""
    before = file.read_bytes()
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    ended = ground.resume(folder)
    file.write_bytes(before)
    row.hear(ended, folder, status, *said)
    return ended


def changed_data(ground: Ground) -> Row:
    row = Row(("data: one letter is another", "数据：改了一个字母"), REFUSES)
    data = ground.folder("-pairs.jsonl")
    text = (ground.material / "pairs.jsonl").read_text()
    data.write_text(text)
    words = dpo(data)
    folder = stopped(ground, words)
    _change(ground, row, data, text.replace("joy", "toy", 1), folder, "the data is not what the run began")
    ground.same(row, folder, words)
    return row


def _refused(
    ground: Ground, row: Row, runs: Sequence[list[str]], file: Path, content: str | bytes, *, said: str
) -> Row:
    """Each of the runs is stopped, refused with the file changed, and resumed with it put back."""
    for words in runs:
        folder = stopped(ground, words, 2)
        _change(ground, row, file, content, folder, said)
        ground.same(row, folder, words)
    return row


def changed_model(ground: Ground) -> Iterator[Row]:
    """One weight; the tokenizer; the reference model's weights, and a setting of the model."""
    from safetensors.torch import load_file, save

    from trimtab.policies.load import resolve_model

    model, other = ground.folder("-model"), ground.folder("-reference")
    for copy in (model, other):
        copytree(resolve_model("reviews"), copy)
    weights = load_file(model / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1.0
    changed = save(weights, metadata={"format": "pt"})
    data = ground.material / "pairs.jsonl"
    online = ["train", "grpo", "--model", str(model), "--data", str(data), *PLAIN, "--reward", "length:20"]
    online += ["--refreshes", "3", "--prompts", "2", "--samples", "2", "--max-new-tokens", "6"]
    runs = (dpo(data, str(model)), online)
    row = Row(("model: one weight is another", "模型：改了一个权重"), REFUSES, tries=2)
    yield _refused(
        ground, row, runs, model / "model.safetensors", changed, said="the model is not what the run"
    )
    row = Row(("tokenizer: two tokens change places", "分词器：两个词元互换"), REFUSES, tries=2)
    settings = json.loads((model / "tokenizer.json").read_text())
    vocabulary = settings["model"]["vocab"]
    one, two = (name for name, number in vocabulary.items() if number in (300, 301))
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    yield _refused(
        ground, row, runs, model / "tokenizer.json", json.dumps(settings), said="is not what the run"
    )
    row = Row(("config.json of the model: rope_theta", "模型的 config.json：rope_theta"), REFUSES)
    config = json.loads((model / "config.json").read_text())
    config["rope_theta"] = config.get("rope_theta", 10000.0) * 2
    if "rope_parameters" in config:
        config["rope_parameters"]["rope_theta"] *= 2
    yield _refused(
        ground, row, runs[:1], model / "config.json", json.dumps(config), said="is not what the run"
    )
    row = Row(("--reference: one weight is another", "--reference：改了一个权重"), REFUSES, tries=2)
    runs = ([*dpo(data), "--reference", str(other)], [*online, "--reference", str(other)])
    file = other / "model.safetensors"
    yield _refused(ground, row, runs, file, changed, said="the reference model is not what")


def changed_options(ground: Ground, words: list[str]) -> Iterator[Row]:
    folder = stopped(ground, words)
    file = folder / "trimtab.yaml"
    text = file.read_text()
    row = Row(("trimtab.yaml: another beta", "trimtab.yaml：改了 beta"), REFUSES)
    _change(ground, row, file, text.replace("beta: 0.1", "beta: 0.2"), folder, "but the run began with 0.1")
    yield row
    row = Row(("trimtab.yaml: cut in half", "trimtab.yaml：只剩一半"), REFUSES)
    _change(ground, row, file, text[: len(text) // 2], folder)
    ground.same(row, folder, words)
    yield row
