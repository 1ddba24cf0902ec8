"""What the doctor finds in public files of feedback, as a Markdown table.

    python -m benchmarks.doctor_demos FOLDER [--model reviews] [--document]

FOLDER holds demos/ and rankings/ with the files below: LLaMA-Factory's demonstration data and Open
Assistant's rankings. The tokenizer is that of --model, by default the built-in example's, which was made of
English film reviews: what it says of Chinese text is part of the finding. Only data and tokens are looked at,
and each file as the method in METHODS would learn from it.
"""

import argparse
from pathlib import Path

from benchmarks.document import fill

from trimtab.doctor.findings import Finding
from trimtab.doctor.run import Examination, examine
from trimtab.feedback.conversions import ViewOptions
from trimtab.feedback.inspect import places_in
from trimtab.jobs import DataConfig
from trimtab.methods import find
from trimtab.policies.load import ModelConfig
from trimtab.terminal import quiet_libraries
from trimtab.train import RunConfig

METHODS = {
    "demos/dpo_en_demo.json": "dpo",
    "demos/dpo_zh_demo.json": "dpo",
    "demos/kto_en_demo.json": "kto",
    "demos/alpaca_zh_demo.json": "sft",
    "rankings/oasst_zh.json": "reward_ranking",
    "rankings/oasst_en_trees.jsonl": "reward_ranking",
}
HEADINGS = ("file", "method", "verdict", "check", "what was found", "where")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="reviews")
    parser.add_argument("--document", action="store_true", help="write the table into docs/, too")
    options = parser.parse_args()
    quiet_libraries()
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    for file, method in METHODS.items():
        lines += rows(Path(file).name, method, look(options.folder / file, method, options.model))
    print("\n".join(lines))
    if options.document:
        fill(lambda name, language: "\n".join(lines) if name == "doctor" else None)


def look(file: Path, method: str, model: str) -> list[Finding]:
    """What the doctor finds in a file, and in its tokens."""
    what = Examination(
        model=ModelConfig(model),
        data=DataConfig(str(file), bad_rows="skip"),
        views=ViewOptions(),
        run=RunConfig(),
        method=find(method)(),
        groups=("data", "tokens"),
    )
    return examine(what)


def rows(file: str, method: str, findings: list[Finding]) -> list[str]:
    """A line for each warning and error, and one that counts the rest."""
    bad = [finding for finding in findings if finding.level in ("warning", "error")]
    cells = [(f.level, f.check, f.said, places_in(f.places) if f.places else "") for f in bad]
    fine = sum(finding.level == "ok" for finding in findings)
    cells.append(("ok", f"{fine} others", f"{len(findings) - len(bad) - fine} skipped", ""))
    lines = [(file, method, *cell) for cell in cells]
    return ["| " + " | ".join(part.replace("|", "\\|") for part in line) + " |" for line in lines]


if __name__ == "__main__":
    main()
