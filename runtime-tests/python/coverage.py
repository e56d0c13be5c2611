"""How many lines of each crate the tests run: `cargo test --workspace` with instrumented code, counted by llvm_profparser.

    cargo install --locked llvm_profparser
    python3 runtime-tests/python/coverage.py [--target DIR] [--cov cov]

Lines of tests and of benchmarks are not counted, and neither are the long matrix and the long texts of runtime-tests run
(`forms::`, `long::`), which would take an hour so. Tests that limit the size of files fail, as counts are written into
files too. Prints a table, and the files with most lines that no test ran.
"""

import argparse
import collections
import glob
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CRATES = ["format", "passes", "runtime", "converter"]
SKIPPED = ["--skip", "forms::", "--skip", "long::"]
LINE = re.compile(r"\s*(\d+)\|\s*([0-9.]+[kMGE]?)\|")
WORST = 12


def cargo(target, profiles, *words):
    wrapper = Path(target, "instrumented.sh")
    wrapper.parent.mkdir(parents=True, exist_ok=True)
    wrapper.write_text('#!/bin/sh\nexec "$@" -Cinstrument-coverage\n')
    wrapper.chmod(0o755)
    env = {
        **os.environ, "CARGO_TARGET_DIR": str(target), "RUSTC_WORKSPACE_WRAPPER": str(wrapper), "CARGO_INCREMENTAL": "0",
        "LLVM_PROFILE_FILE": f"{profiles}/%4m.profraw",
    }
    command = ["cargo", "test", "--workspace", "--no-fail-fast", *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def executables(target, profiles):
    """The instrumented tests, and the program that they start."""
    built = cargo(target, profiles, "--no-run", "--message-format=json")
    found = set()
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message.get("executable"):
            found.add(message["executable"])
    if built.returncode or not found:
        sys.exit(built.stderr[-2000:])
    return sorted(found)


def first_line_of_tests(path):
    lines = path.read_text().splitlines()
    marks = (at for at, line in enumerate(lines, 1) if line.startswith("#[cfg(test)]") and "mod " in lines[at])
    return next(marks, len(lines) + 1)


def counted(shown):
    """Of every file, how many lines ran and how many there are."""
    files, name, tests = collections.defaultdict(lambda: [0, 0]), None, 0
    for line in shown.splitlines():
        if line.startswith("/"):
            path = Path(line.strip())
            inside = path.is_relative_to(ROOT) and path.relative_to(ROOT)
            name = inside if inside and inside.parts[:2] in [(crate, "src") for crate in CRATES] else None
            tests = first_line_of_tests(path) if name else 0
            continue
        found = LINE.match(line) if name and "tests" not in name.parts and name.name != "tests.rs" else None
        if found and int(found[1]) < tests:
            files[name][0] += found[2] != "0"
            files[name][1] += 1
    return files


def table(files):
    print("| crate | lines | run by a test | share |\n|---|---|---|---|")
    for crate in [*CRATES, "all"]:
        both = [n for name, n in files.items() if crate in ("all", name.parts[0])]
        ran, lines = (sum(n[i] for n in both) for i in (0, 1))
        print(f"| {crate} | {lines} | {ran} | {100 * ran / max(lines, 1):.1f} % |")
    print("\nmost lines that no test ran:")
    for name, (ran, lines) in sorted(files.items(), key=lambda f: f[1][0] - f[1][1])[:WORST]:
        print(f"  {lines - ran:4} of {lines:4}  {name}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=ROOT / "target/coverage")
    parser.add_argument("--cov", default="cov", help="llvm_profparser's program")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as build, tempfile.TemporaryDirectory() as profiles:
        programs = executables(args.target, build)
        cargo(args.target, profiles, "--", *SKIPPED)
        words = [word for profile in glob.glob(f"{profiles}/*.profraw") for word in ("--instr-profile", profile)]
        words += [word for program in programs for word in ("--object", program)]
        shown = subprocess.run([args.cov, "show", *words], capture_output=True, text=True, check=True)
    table(counted(shown.stdout))


if __name__ == "__main__":
    main()
