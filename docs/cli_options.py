#!/usr/bin/env python3
"""docs/cli-options.md from the program's own help.

    python3 docs/cli_options.py DIJIANG            writes docs/cli-options.md anew
    python3 docs/cli_options.py DIJIANG --check    fails where the file is not what would be written
"""

import os
import re
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).resolve().parent / "cli-options.md"
HEAD = """# Options

<!-- Generated: `python3 docs/cli_options.py target/debug/dijiang` writes this file anew. -->

`dijiang COMMAND --help` prints these texts, and `dijiang man DIR` writes them as manual pages. [The command
line](cli.md) says what all commands have in common.
"""


def told(program, *words):
    # The help is as wide as a terminal, and 100 columns where there is none.
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(
        [program, *words, "--help"], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def main():
    program = sys.argv[1]
    whole = told(program)
    listed = re.search(r"^Commands:\n((?:  .*\n)+)", whole, re.MULTILINE)[1]
    commands = [name for name in re.findall(r"^  (\S+)", listed, re.MULTILINE) if name != "help"]
    parts = [HEAD, f"```text\n{whole}\n```\n"]
    parts += [f"## {name}\n\n```text\n{told(program, name)}\n```\n" for name in commands]
    text = "\n".join(parts)
    if "--check" not in sys.argv[2:]:
        FILE.write_text(text, encoding="utf-8")
    elif not FILE.is_file() or FILE.read_text(encoding="utf-8") != text:
        sys.exit("docs/cli-options.md is not what the help says: `python3 docs/cli_options.py DIJIANG` writes it anew")


main()
