#!/usr/bin/env python3
"""What `mdbook build` runs (book.toml): links that lead out of docs/ lead to something in the book too.

    python3 docs/book.py --check BOOK

A Markdown file outside of docs/ that a chapter links to becomes a chapter of its own, at the end. Of a link to any other file
its text stays, and the path behind it. `--check` looks at a book that was built: every link and anchor of its pages.
"""

import html
import json
import os
import re
import sys
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
BOOK = PurePosixPath("docs")
# Where the chapters from outside lie, in the book.
OUTSIDE = PurePosixPath("repository")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def chapters(items):
    for item in items:
        chapter = item.get("Chapter") if isinstance(item, dict) else None
        if chapter:
            yield chapter
            yield from chapters(chapter["sub_items"])


def page(source):
    """Where a file of the repository lies in the book, or None: it has no page there."""
    if source.suffix != ".md":
        return source.relative_to(BOOK) if source.is_relative_to(BOOK) else None
    return source.relative_to(BOOK) if source.is_relative_to(BOOK) else OUTSIDE / source


def relinked(text, source):
    """The text of a file of the repository for the book, and the Markdown files outside of docs/ that it links to."""
    found = []

    def link(match):
        bang, words, target = match.groups()
        name, _, fragment = target.partition("#")
        if not name or re.match(r"[a-z][a-z0-9+.-]*:", target):
            return match[0]
        file = PurePosixPath(os.path.normpath(source.parent / name))
        to = page(file)
        if to is None:
            return words if f"`{file}`" == words else f"{words} (`{file}`)"
        if to.is_relative_to(OUTSIDE):
            found.append(file)
        path = os.path.relpath(to, page(source).parent)
        return f"{bang}[{words}]({path}{'#' + fragment if fragment else ''})"

    # Spans and blocks of code are no links.
    parts = re.split(r"(^```.*?^```|^~~~.*?^~~~|`[^`\n]*`(?!\]))", text, flags=re.M | re.S)
    return "".join(part if i % 2 else LINK.sub(link, part) for i, part in enumerate(parts)), found


def outside(source, text):
    heading = re.search(r"^# (.*)$", text, flags=re.M)
    path = str(OUTSIDE / source)
    name = "README" if source == PurePosixPath("README.md") else heading[1]
    return {"Chapter": {"name": name, "content": text, "number": None, "sub_items": [], "path": path,
                        "source_path": None, "parent_names": []}}


def preprocess():
    _, book = json.load(sys.stdin)
    items = book["items"]
    wanted = []
    for chapter in chapters(items):
        if chapter["path"]:
            chapter["content"], found = relinked(chapter["content"], BOOK / chapter["path"])
            wanted += found
    if wanted:
        items.append({"PartTitle": "From the repository"})
    done = set()
    while wanted:
        source = wanted.pop(0)
        if source not in done:
            done.add(source)
            text, found = relinked((ROOT / source).read_text(encoding="utf-8"), source)
            items.append(outside(source, text))
            wanted += found
    json.dump(book, sys.stdout)


def dead(book):
    """What is wrong with the links of a book that was built."""
    pages = {path: path.read_text(encoding="utf-8") for path in sorted(book.rglob("*.html"))}
    for path, text in pages.items():
        # All chapters in one, and what has no place of its own.
        if path.name in ("print.html", "toc.html", "404.html"):
            continue
        for target, fragment in re.findall(r'(?:href|src)="([^"#]*)#?([^"]*)"', text):
            target = html.unescape(target)
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            file = Path(os.path.normpath(path.parent / target)) if target else path
            if not file.is_relative_to(book) or not file.exists():
                yield f"{path.relative_to(book)}: {target}: there is no such file"
            elif fragment and file in pages and f'id="{html.unescape(fragment)}"' not in pages[file]:
                yield f"{path.relative_to(book)}: {target}#{fragment}: there is no such anchor"


def main():
    match sys.argv[1:]:
        case ["supports", renderer]:
            sys.exit(renderer != "html")
        case ["--check", book]:
            wrong = list(dead(Path(book).resolve()))
            print("\n".join([*wrong, f"{len(wrong)} faults"]))
            sys.exit(bool(wrong))
        case []:
            preprocess()
        case _:
            sys.exit(__doc__)


main()
