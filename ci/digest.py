#!/usr/bin/env python3
"""Digests what the jobs of FILE depend on: the program, the plan, and the contents of all that they read.

Takes DIJIANG, FILE, ONLY and SHARD from the environment, and writes the outputs `selection` (a digest of FILE, ONLY and
SHARD), `digest`, `bundles` (the bundles' paths) and `cached` (what to keep between runs: the bundles, and the records of
what made them).
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
    command = [program, "batch", file, "--dry-run", "--json", "--digests", *selection()]
    done = subprocess.run(command, stdout=subprocess.PIPE)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def digest_of(path):
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def digest(program, jobs):
    """Of jobs that have the digests of what they read with them."""
    whole = hashlib.sha256()
    whole.update(digest_of(Path(program)).encode())
    whole.update(json.dumps(jobs, sort_keys=True).encode())
    return whole.hexdigest()


def output(name, lines):
    with open(os.environ["GITHUB_OUTPUT"], "a", encoding="utf-8") as file:
        # No path that is listed is this line.
        end = "end-of-" + hashlib.sha256(repr(lines).encode()).hexdigest()
        file.write(f"{name}<<{end}\n" + "".join(f"{line}\n" for line in lines) + f"{end}\n")


def main():
    program, file = os.environ["DIJIANG"], os.environ["FILE"]
    jobs = plan(program, file)["jobs"]
    bundles = [Path(job["bundle"]) for job in jobs]
    output("selection", [hashlib.sha256(json.dumps([file, *selection()]).encode()).hexdigest()[:16]])
    output("digest", [digest(program, jobs)])
    output("bundles", bundles)
    output("cached", [*sorted(bundles), Path(file).parent / RECORDS])


main()
