"""Names under which no feedback is, given where a file, a folder or a dataset is asked for."""

from pathlib import Path
from unittest import mock

from hypothesis import strategies as st

from tests.fuzz.promises import Case, one_of
from tests.fuzz.values import ODD_TEXT
from trimtab.data import load_records
from trimtab.feedback.records import Record
from trimtab.feedback.writers import write

PARTS = [
    "", ".", "..", "a", "reviews", "reviews:x", "reviews:demonstrations", "no such", "a" * 256, "é" * 200,
    "a" * 5000,
    "a.jsonl", "a.jsonl/b.jsonl", "folder", "folder.jsonl", "a.tsv", "user/name", "user/name:config", "-",
    "--x", "~",
    "link.jsonl", "pipe.jsonl", "/dev/null", "/dev/zero", "/proc/self/mem", "x.parquet", "x.JSON", "*", "%s",
    "[/b]",
]  # fmt: skip
cases: st.SearchStrategy[Case] = st.builds(
    lambda name, end: Case(words=(name + end,)),
    st.one_of(st.sampled_from(PARTS), st.sampled_from(ODD_TEXT), st.text(max_size=6)),
    st.sampled_from(("", "", ".jsonl", "/", ":", ".csv.gz")),
)


def check_name(case: Case, folder: Path) -> bool:
    """Reading from the name and writing to it is done, or refused in a sentence; what is outside stays."""
    import os

    (folder / "folder").mkdir()
    (folder / "folder.jsonl").mkdir()
    (folder / "a.jsonl").write_text('{"prompt": "p"}\n')
    (folder / "link.jsonl").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.jsonl")
    name = case.words[0]
    inside = name if name.startswith("/dev/") or name in ("", ".") else str(folder / name)
    unreachable = mock.patch("datasets.load_dataset", side_effect=ConnectionError("offline"))
    with unreachable, mock.patch("trimtab.feedback.files.hub_answers", return_value=True):
        one_of(lambda: load_records(name if name.startswith("reviews") else inside))
        if "/" not in name:
            one_of(lambda: load_records(name, rejects=folder / "r"))
    if name.startswith(("/", "~")) or ".." in name:
        return False
    written, _ = one_of(lambda: write([Record("prompt", "p")], inside))
    return not written and Path(folder, "a.jsonl").read_text() == '{"prompt": "p"}\n'
