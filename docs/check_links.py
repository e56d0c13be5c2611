#!/usr/bin/env python3
"""Every relative link of the Markdown files leads to a file, and every anchor to a heading.

    python3 docs/check_links.py

Looks at all .md files that git knows of or would add. Fails where a file or an anchor is missing, where
a chapter under docs/ is not in docs/SUMMARY.md, or where README.md has more than 120 lines.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST_README = 120
# The target of an image or a link, whose text may begin a line before; it holds no spaces, and a title may follow it.
LINK = re.compile(r"\]\(([^()\s]+)(?:\s+\"[^\"]*\")?\)")
FENCE = re.compile(r"^\s*(```|~~~)")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")


def prose(text):
    """The lines outside of code, each with its number and without its spans of code."""
    fence = None
    for number, line in enumerate(text.splitlines(), 1):
        found = FENCE.match(line)
        if fence is None and found:
            fence = found[1]
        elif fence is not None:
            if found and found[1] == fence:
                fence = None
        elif not line.startswith("    "):
            yield number, line


def anchor(heading):
    """The anchor that GitHub and mdBook give a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(path):
    seen = {}
    found = set()
    for _, line in prose(path.read_text(encoding="utf-8")):
        heading = HEADING.match(line)
        if heading:
            name = anchor(heading[1])
            count = seen.get(name, 0)
            seen[name] = count + 1
            found.add(f"{name}-{count}" if count else name)
    return found


def dead(path):
    """What is wrong with the links of one file."""
    for number, line in prose(path.read_text(encoding="utf-8")):
        for target in LINK.findall(re.sub(r"`[^`]*`", "", line)):
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            name, _, fragment = target.partition("#")
            file = (path.parent / name).resolve() if name else path
            place = f"{path.relative_to(ROOT)}:{number}"
            if not file.is_relative_to(ROOT) or not file.exists():
                yield f"{place}: {target}: there is no such file"
            elif fragment and file.suffix == ".md" and fragment not in anchors(file):
                yield f"{place}: {target}: there is no heading of this anchor"


def outside_the_book():
    """Chapters that the table of contents does not have."""
    summary = ROOT / "docs/SUMMARY.md"
    named = {(summary.parent / target).resolve() for target in LINK.findall(summary.read_text(encoding="utf-8"))}
    for path in sorted((ROOT / "docs").rglob("*.md")):
        if path != summary and path.resolve() not in named:
            yield f"docs/SUMMARY.md: it does not name {path.relative_to(ROOT)}"


def main():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.md"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    ).stdout.split("\0")
    files = [ROOT / name for name in sorted(set(listed)) if name and (ROOT / name).is_file()]
    wrong = [fault for path in files for fault in dead(path)] + list(outside_the_book())
    lines = len((ROOT / "README.md").read_text(encoding="utf-8").splitlines())
    if lines > LONGEST_README:
        wrong.append(f"README.md: it has {lines} lines, expected {LONGEST_README} at most")
    print("\n".join([*wrong, f"{len(files)} files, {len(wrong)} faults"]))
    sys.exit(bool(wrong))


main()
