# SPDX-License-Identifier: Apache-2.0
"""Links between the documents lead somewhere, variables are listed, and the code on the first pages runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").rglob("*.md")])


def anchors(page: Path) -> set[str]:
    """The names that a page's headings have as targets of links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_document_is_in_the_list_of_documents():
    folder = ROOT / "docs"
    linked = re.findall(r"\]\(([^)#\s]+)", (folder / "README.md").read_text())
    pages = {str(page.relative_to(folder)) for page in folder.rglob("*.md")} - {"README.md"}
    assert pages <= set(linked), pages - set(linked)


def test_environment_variables():
    """Those that the code reads are those of the table."""
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "csrc").rglob("*.cc")]
    read = {name for source in sources for name in re.findall(r'"(ANYNPU_[A-Z_]+)"', source.read_text())}
    assert read == set(re.findall(r"^\| `(ANYNPU_\w+)`", (ROOT / "docs/setup.md").read_text(), re.MULTILINE))


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "code",
    [*blocks("README.md"), "\n".join(blocks("docs/quantization.md")[:2])],  # the third wants a folder of a hub
    ids=["readme torch_npu", "readme anynpu", "quantization"],
)
def test_code_runs(code, tmp_path):
    (tmp_path / "block.py").write_text(code)  # no module of Python has this name
    subprocess.run([sys.executable, "-m", "anynpu", "run", "block.py"], cwd=tmp_path, check=True)
