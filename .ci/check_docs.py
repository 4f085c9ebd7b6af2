# SPDX-License-Identifier: Apache-2.0
"""List the Markdown pages of this repository and check that every relative link leads to a file or heading."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+\s+(.+?)\s*$", re.MULTILINE)
BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`[^`\n]*`")


def pages() -> list[Path]:
    """Return every Markdown page that belongs to the repository."""
    folders = [ROOT.glob("*.md"), *(ROOT.glob(f"{name}/**/*.md") for name in ("docs", "changelog.d", "bench", "examples", "tests"))]
    return sorted(page for folder in folders for page in folder)


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub spells them."""
    found = HEADING.findall(BLOCK.sub("", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def broken_links(page: Path) -> list[str]:
    """Return one line for each relative link of `page` that leads nowhere."""
    problems = []
    for link in LINK.findall(SPAN.sub("", BLOCK.sub("", page.read_text(encoding="utf-8")))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            problems.append(f"{page.relative_to(ROOT)}: {link} does not exist")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text(encoding="utf-8")):
            problems.append(f"{page.relative_to(ROOT)}: {link} has no such heading")
    return problems


def main() -> int:
    """Print the pages with their titles, then the broken links; return 1 when there is one."""
    found = pages()
    for page in found:
        title = HEADING.search(page.read_text(encoding="utf-8"))
        print(f"{page.relative_to(ROOT)}{': ' + title.group(1) if title else ''}")
    problems = [problem for page in found for problem in broken_links(page)]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(found)} pages, {len(problems)} broken links")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
