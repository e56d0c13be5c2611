"""Compare the bundles of two builds of dijiang, byte for byte.

    python3 runtime-tests/python/compare_binaries.py OLD NEW [--fixtures DIR] [--only TEXT] [--jobs N]

Converts every fixture with every recipe, target and element type, and with weights of four bits for target ort, by
both binaries without a proof. The graphs and the weight file must be the same bytes. Of `dijiang.json` the keys that
differ are counted and listed, but for `checks`. Exit: 0 nothing differs but those keys, 1 something does, 2 wrong call.
"""

import argparse
import collections
import concurrent.futures
import filecmp
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ["ort", "portable", "onnx27"]
DTYPES = ["f32", "f16", "bf16"]


def cases(fixtures):
    sources = sorted(path.parent for path in fixtures.glob("*/reference.safetensors"))
    recipes = sorted(path.stem for path in (ROOT / "converter/src/recipes").glob("*.yaml"))
    for source, recipe, target, dtype in itertools.product(sources, recipes, TARGETS, DTYPES):
        options = ["--recipe", recipe, "--target", target, "--dtype", dtype]
        yield source, options
        if target == "ort" and dtype == "f32":
            yield source, [*options, "--weights", "int4"]


def convert(binary, source, options, out):
    command = [binary, "convert", source, "-o", out, "--no-verify", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def compare(binaries, source, options):
    """What differs: a list of lines, and the keys of the manifest."""
    with tempfile.TemporaryDirectory() as directory:
        bundles = [Path(directory) / name for name in ("old", "new")]
        runs = [convert(binary, source, options, out) for binary, out in zip(binaries, bundles)]
        if runs[0].returncode != runs[1].returncode:
            words = (runs[0].stderr + runs[1].stderr).strip().splitlines()
            return [f"exit {runs[0].returncode} and {runs[1].returncode}: {words[-1:]}"], []
        if runs[0].returncode != 0:
            return [], []
        names = [{path.name for path in bundle.iterdir()} for bundle in bundles]
        lines = [f"{name} in one alone" for name in sorted(names[0] ^ names[1])]
        keys = []
        for name in sorted(names[0] & names[1]):
            old, new = (bundle / name for bundle in bundles)
            if name == "dijiang.json":
                old, new = (json.loads(path.read_text()) for path in (old, new))
                keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
            elif not filecmp.cmp(old, new, shallow=False):
                lines.append(f"{name} differs")
        return lines, [key for key in keys if key != "checks"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--fixtures", type=Path, default=ROOT / "fixtures")
    parser.add_argument("--only", default="", help="cases whose options hold this text")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    for binary in (args.old, args.new):
        if not binary.is_file():
            parser.error(f"{binary} is no file")
    binaries = [args.old.resolve(), args.new.resolve()]
    chosen = [(s, o) for s, o in cases(args.fixtures) if args.only in " ".join([s.name, *o])]
    different, manifest = 0, collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        found = pool.map(lambda case: compare(binaries, *case), chosen)
        for (source, options), (lines, keys) in zip(chosen, found):
            manifest.update(keys)
            different += bool(lines)
            if lines:
                print(f"{source.name} {' '.join(options[1::2])}: {'; '.join(lines)}", flush=True)
    for key, count in sorted(manifest.items()):
        print(f"dijiang.json: `{key}` differs in {count} of {len(chosen)}")
    print(f"{len(chosen)} conversions, {different} with other graphs or weights")
    sys.exit(1 if different or not chosen else 0)


if __name__ == "__main__":
    main()
