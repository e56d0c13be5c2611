#!/usr/bin/env python3
"""Digests what the jobs of FILE read: the program, the plan, and the contents of every file of it.

Takes DIJIANG, FILE, ONLY and SHARD from the environment, and writes the outputs `digest`, `bundles` (the bundles' paths)
and `cached` (what to keep between runs: the directories of the bundles, and the records of what made them).
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

RECORDS = ".dijiang-batch"


def selection():
    only = [f"--only={name.strip()}" for name in os.environ["ONLY"].splitlines() if name.strip()]
    shard = os.environ["SHARD"]
    return only + ([f"--shard={shard}"] if shard else [])


def plan(program, file):
    command = [program, "batch", file, "--dry-run", "--json", *selection()]
    done = subprocess.run(command, stdout=subprocess.PIPE)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def files_of(path):
    """The path itself, or every file below it, in an order that does not depend on the machine."""
    if not path.is_dir():
        return [path]
    return sorted((found for found in path.rglob("*") if found.is_file()), key=lambda found: found.as_posix())


def digest_of(path):
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def read_by(job):
    """What a job reads. A recipe is a name or a file."""
    recipe = Path(job["recipe"])
    return [Path(job["source"]), *map(Path, job["reads"]), *([recipe] if recipe.is_file() else [])]


def digest(program, jobs):
    whole = hashlib.sha256()
    whole.update(digest_of(Path(program)).encode())
    whole.update(json.dumps(jobs, sort_keys=True).encode())
    for path in sorted({path for job in jobs for path in read_by(job)}):
        for file in files_of(path):
            whole.update(f"{file.as_posix()}\0{digest_of(file) if file.exists() else 'missing'}\n".encode())
    return whole.hexdigest()


def cached(file, bundles):
    """The directories that bundles lie in. One that holds the file of jobs too is not kept as a whole."""
    root = Path(file).parent
    above = (root.resolve(), *root.resolve().parents)
    kept = {bundle if bundle.parent.resolve() in above else bundle.parent for bundle in bundles}
    return sorted(kept) + [root / RECORDS]


def output(name, lines):
    with open(os.environ["GITHUB_OUTPUT"], "a", encoding="utf-8") as file:
        # No path that is listed is this line.
        end = "end-of-" + hashlib.sha256(repr(lines).encode()).hexdigest()
        file.write(f"{name}<<{end}\n" + "".join(f"{line}\n" for line in lines) + f"{end}\n")


def main():
    program, file = os.environ["DIJIANG"], os.environ["FILE"]
    jobs = plan(program, file)["jobs"]
    bundles = [Path(job["bundle"]) for job in jobs]
    output("digest", [digest(program, jobs)])
    output("bundles", bundles)
    output("cached", cached(file, bundles))


main()
