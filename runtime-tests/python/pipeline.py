#!/usr/bin/env python3
"""The README's "Try it", in a clean clone: build, convert, verify, train, evaluate and generate, with the time of each.

    python3 runtime-tests/python/pipeline.py [--json]

Clones the commit that is checked out into a temporary directory below target/, builds `dijiang` there from nothing and
runs it on fixtures/shakespeare. ONNX Runtime is that of ORT_DYLIB_PATH (`./run-tests pipeline` sets it). Fails where a
command does, where training does not bring the quality back, or where no text comes.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = "fixtures/shakespeare"
BUNDLE = "target/shakespeare"
DATA = f"--data {TEXT}/train.txt --valid {TEXT}/valid.txt --context 256"
# Validation perplexity per byte that the README's training must reach; it says 3.35. `eval` reads all of the text, on
# which it is higher.
MOST = 3.6


class Pipeline:
    def __init__(self, clone):
        self.clone = clone
        self.times = []
        self.environment = {name: value for name, value in os.environ.items() if name != "CARGO_TARGET_DIR"}

    def run(self, name, command):
        """Runs a command in the clone, and returns what it printed."""
        print(f"{name}: {command}", file=sys.stderr, flush=True)
        start = time.monotonic()
        done = subprocess.run(
            shlex.split(command), cwd=self.clone, env=self.environment, stdout=subprocess.PIPE, text=True
        )
        self.times.append((name, time.monotonic() - start))
        if done.returncode != 0:
            sys.exit(f"{name}: `{command}` ended with exit status {done.returncode}\n{done.stdout}")
        return done.stdout

    def dijiang(self, name, arguments):
        return json.loads(self.run(name, f"target/release/dijiang {arguments} --json"))

    def perplexity(self, name):
        found = self.dijiang(name, f"eval {BUNDLE} --perplexity {TEXT}/valid.txt --context 256")
        return found["results"][0]["value"]


def readme(pipeline):
    """The commands, in the README's order, and what they measured."""
    pipeline.run("build", "cargo build --release --locked -p dijiang")
    converted = pipeline.dijiang("convert", f"convert {TEXT} -o {BUNDLE} --force")
    before = pipeline.perplexity("eval converted")
    pipeline.dijiang("calibrate", f"calibrate {BUNDLE} {DATA} --batch 8 --steps 60")
    trained = pipeline.dijiang("finetune", f"finetune {BUNDLE} {DATA} --steps 120 --lr 1e-3 --new-lr 3")
    verified = pipeline.dijiang("verify", f"verify {BUNDLE}")
    after = pipeline.perplexity("eval trained")
    generated = pipeline.dijiang("generate", f"generate {BUNDLE} --prompt ROMEO: -n 100")
    return {
        "linear": sum(site["kept"] is None for site in converted["sites"]),
        "checks": sum(check["status"] == "held" for check in verified["checks"]),
        "perplexity_converted": before,
        "perplexity_trained": after,
        "validation_trained": trained["valid_perplexity"],
        "text": generated["text"],
    }


def clone(directory):
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, directory], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    (ROOT / "target").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "target", prefix="pipeline-") as directory:
        start = time.monotonic()
        clone(directory)
        pipeline = Pipeline(directory)
        pipeline.times.append(("clone", time.monotonic() - start))
        found = readme(pipeline)
    report(arguments, pipeline.times, found)
    if not (found["validation_trained"] <= MOST and found["text"].strip()):
        reached = f"training brought the validation perplexity to {found['validation_trained']:.2f}"
        sys.exit(f"{reached}, expected {MOST} or less, and a text")


def report(arguments, times, found):
    if arguments.json:
        print(json.dumps({"seconds": dict(times), **found}))
        return
    for name, seconds in [*times, ("all", sum(seconds for _, seconds in times))]:
        print(f"{name:<16} {seconds:7.1f} s")
    print(f"{found['linear']} attentions are linear, {found['checks']} checks held")
    print(f"perplexity: converted {found['perplexity_converted']:.2f}, trained {found['perplexity_trained']:.2f}")
    print(f"validation perplexity: trained {found['validation_trained']:.2f}")
    print(found["text"])


main()
