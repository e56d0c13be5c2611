"""Fail or kill dijiang at every call that changes a file, and look at what is left.

    python3 runtime-tests/python/faults.py DIJIANG [--only NAME] [--every N] [--moments N] [--seed N]

Each command runs once for each of its calls (write, fsync, rename, mkdir, link, open for writing, as libc has them) and
for each of ENOSPC, EIO and SIGKILL, which faults.c, a library to preload, makes of that call. It also runs with a
SIGKILL at random moments. After each run

  - the bundle is the old one or the new one, by the bytes of its files, and `verify --digests` holds;
  - every tenth time `eval` reads tokens with it;
  - the same command, without a fault, ends with 0 and leaves the new bundle;
  - beside it lies nothing else than after a run without faults.

Needs a C compiler, Linux and ONNX Runtime. Exit: 0 all held, 1 something did not, 2 wrong call.
"""

import argparse
import errno
import hashlib
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ["--data", "ids.u16", "--steps", "2", "--batch", "2", "--context", "16", "--threads", "1"]
COMMANDS = {
    "convert": ["convert", "model", "-o", "b", "--no-verify", "--force", "--seed", "1"],
    "calibrate": ["calibrate", "b", *TRAIN],
    "finetune": ["finetune", "b", *TRAIN],
    "quantize": ["quantize", "b", "-o", "b", "--weights", "int4", "--no-verify", "--force"],
    "import-weights": ["import-weights", "b", "w.safetensors"],
    "batch": ["batch", "jobs.yaml"],
}
JOBS = """version: 1
defaults: {out: .}
jobs:
  - {name: b, model: model, steps: [{convert: {seed: 1, no-verify: true}}]}
"""
FAULTS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "SIGKILL": 0}


class Trials:
    """One command, over and over."""

    def __init__(self, binary, library, name, work):
        self.binary, self.library, self.name, self.work = binary, library, name, work
        self.command = COMMANDS[name]
        self.template = work / "template"
        self.done = 0
        self.found = []

    def run(self, place, command, at=None, error=0):
        environment = dict(os.environ)
        state = self.work / "state"
        state.write_bytes(bytes(8))
        if at is not None:
            environment |= {
                "LD_PRELOAD": str(self.library),
                "FAULT_STATE": str(state),
                "FAULT_AT": str(at),
                "FAULT_ERROR": str(error),
            }
        ran = subprocess.run(
            [self.binary, *command], cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        return ran, struct.unpack("Q", state.read_bytes())[0]

    def fresh(self):
        place = self.work / "place"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.template, place, symlinks=True)
        return place

    def prepare(self):
        """The old bundle, the new one, and how many calls lie between."""
        place = self.template
        place.mkdir()
        shutil.copytree(ROOT / "fixtures/llama", place / "model")
        tokens = (n * 7 % 60 for n in range(4000))
        (place / "ids.u16").write_bytes(b"".join(struct.pack("<H", token) for token in tokens))
        (place / "jobs.yaml").write_text(JOBS)
        self.must(place, ["convert", "model", "-o", "b", "--no-verify", "--seed", "0"])
        if self.name == "import-weights":
            shutil.copytree(place / "b", place / "other")
            self.must(place, ["calibrate", "other", *TRAIN])
            shutil.move(place / "other/model.safetensors", place / "w.safetensors")
            shutil.rmtree(place / "other")
        if self.name == "batch":
            shutil.rmtree(place / "b")
            self.must(place, self.command)
            text = (place / "jobs.yaml").read_text()
            (place / "jobs.yaml").write_text(text.replace("seed: 1", "seed: 2"))
        self.old = snapshot(place / "b")
        place = self.fresh()
        ran, self.calls = self.run(place, self.command, at=0)
        if ran.returncode != 0:
            sys.exit(f"{self.name}: {ran.stderr}")
        self.new, self.names = snapshot(place / "b"), names(place)

    def must(self, place, command):
        ran, _ = self.run(place, command)
        if ran.returncode != 0:
            sys.exit(f"{' '.join(command)}: {ran.stderr}")

    def fault(self, at, kind):
        place = self.fresh()
        ran, _ = self.run(place, self.command, at, FAULTS[kind])
        self.look(place, f"{kind} at call {at}", ran)

    def kill_after(self, seconds):
        place = self.fresh()
        child = subprocess.Popen(
            [self.binary, *self.command], cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        time.sleep(seconds)
        child.kill()
        _, words = child.communicate()
        self.look(place, f"killed after {seconds:.3f} s", subprocess.CompletedProcess([], child.returncode, "", words))

    def look(self, place, what, ran):
        self.done += 1
        wrong = []
        if "panicked" in ran.stderr or ran.returncode not in (0, 2, -9):
            wrong.append(f"ended with {ran.returncode}: {ran.stderr.strip()[-300:]}")
        left = snapshot(place / "b")
        if left not in (self.old, self.new):
            wrong.append(f"the bundle is neither the old nor the new one, by {differing(left, self.old, self.new)}")
        if ran.returncode == 0 and left != self.new:
            wrong.append("it ended with 0 and left the old bundle")
        for command in self.looks():
            seen, _ = self.run(place, command)
            if seen.returncode != 0:
                wrong.append(f"{command[0]}: {seen.stdout.strip()[-200:]} {seen.stderr.strip()[-300:]}")
        again, _ = self.run(place, self.command)
        # Weights of four bits are not quantized once more.
        is_done = self.name == "quantize" and left == self.new
        if again.returncode != 0 and not is_done:
            wrong.append(f"the next run: {again.stderr.strip()[-300:]}")
        elif again.returncode == 0 and snapshot(place / "b") != self.new and self.repeats():
            wrong.append(f"after the next run by {differing(snapshot(place / 'b'), self.new)}")
        more = names(place) ^ self.names
        if more:
            wrong.append(f"beside it: {sorted(more)}")
        self.found += [f"{self.name}, {what}: {line}" for line in wrong]
        for line in wrong:
            print(f"{self.name}, {what}: {line}", flush=True)

    def looks(self):
        yield ["verify", "b", "--digests"]
        if self.done % 10 == 0:
            yield ["eval", "b", "--perplexity", "ids.u16", "--context", "16", "--max-tokens", "64"]

    def repeats(self):
        """Whether a second run over the new bundle gives the same: training goes on from it."""
        return self.name not in ("calibrate", "finetune")


def snapshot(bundle):
    """The files that are served, by their bytes; what training keeps beside them is its own."""
    if not bundle.is_dir():
        return None
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    return {path.name: digest(path) for path in sorted(bundle.iterdir()) if path.is_file() and path.name != "dijiang.json"}


def names(place):
    kept = lambda path: "train" not in path.parts and not path.name.startswith("metrics")
    return {str(path.relative_to(place)) for path in place.rglob("*") if kept(path.relative_to(place))}


def differing(found, *wanted):
    if found is None:
        return "being absent"
    apart = [sorted(name for name in found.keys() | one.keys() if found.get(name) != one.get(name)) for one in wanted]
    return " or ".join(", ".join(names) for names in apart)


def compile_library(work):
    library = work / "faults.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=Path)
    parser.add_argument("--only", choices=COMMANDS)
    parser.add_argument("--every", type=int, default=1, help="of the calls take every so manyth")
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    binary = arguments.binary.resolve()
    dice = random.Random(arguments.seed)
    failed = 0
    for name in [arguments.only] if arguments.only else COMMANDS:
        with tempfile.TemporaryDirectory() as directory:
            work = Path(directory)
            trials = Trials(binary, compile_library(work), name, work)
            trials.prepare()
            start = time.monotonic()
            trials.must(trials.fresh(), trials.command)
            took = time.monotonic() - start
            for at in range(1, trials.calls + 1, arguments.every):
                for kind in FAULTS:
                    trials.fault(at, kind)
            for _ in range(arguments.moments):
                trials.kill_after(dice.uniform(0, took))
            failed += len(trials.found)
            print(f"{name}: {trials.calls} calls, {trials.done} faults, {len(trials.found)} findings", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
