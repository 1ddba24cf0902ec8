"""The findings that docs/doctor.md records of public files are those that the doctor has."""

from pathlib import Path

import pytest
from benchmarks.doctor_demos import METHODS, look, rows

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"


@pytest.mark.skipif(not DATA.exists(), reason="the files are not part of the repository")
@pytest.mark.parametrize("file", METHODS)
def test_the_page_says_what_the_doctor_finds(file: str) -> None:
    name, method = Path(file).name, METHODS[file]
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8").splitlines()
    recorded = [line for line in page if line.startswith(f"| {name} |")]
    assert len(recorded) > 1
    assert rows(name, method, look(DATA / file, method, "reviews")) == recorded
