"""Recipes at equal tokens: convert, calibrate, fine-tune and evaluate each, over several seeds.

    python3 runtime-tests/python/ablation.py DIJIANG CHECKPOINT --train TRAIN.u16 --valid VALID.u16
        --recipes adaptive runtime-tests/python/ablation/window-128.yaml --seeds 0 1 2 [--device cuda:0]
        [--calibrate 158] [--finetune 256] [--batch 16] [--context 512] [--windows 64] [--out DIR]

Perplexities are those of VALID in windows of --context and of four times as many tokens, and of a text of random tokens
that comes twice in every window: what a model copies lowers it. A line of JSON for each run as it ends, and a table last,
with means and the largest distance from them. A recipe without parameters of its own is not calibrated. Exit: 0 all ran,
1 a command failed.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

COLUMNS = ["converted", "calibrated", "tuned", "tuned_long", "copied"]
# What calibrate says where a recipe adds no parameters.
NOTHING = "nothing is left to train"
FINETUNE = "--lr 1e-3 --schedule linear --warm-up 16 --weight-decay 0 --teacher self --teacher-weight 0.5".split()


def run(args, *words):
    command = [str(word) for word in (args.binary, *words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout) if "--json" in words else None


def perplexity(args, bundle, text, context):
    tokens = args.windows * args.context
    words = ["eval", bundle, "--perplexity", text, "--context", context, "--max-tokens", tokens]
    found = run(args, *words, "--device", args.device, "--json")
    return found["results"][0]["value"]


def write_copies(path, args):
    """Windows of random tokens that come twice, little-endian u16."""
    numbers, half = random.Random(1), args.context // 2
    tokens = json.loads((args.checkpoint / "config.json").read_text())["vocab_size"]
    with open(path, "wb") as file:
        for _ in range(args.windows // 8 or 1):
            once = [numbers.randrange(tokens) for _ in range(half)]
            file.write(b"".join(token.to_bytes(2, "little") for token in once + once))


def one(args, recipe, seed, home):
    bundle, copies = home / "bundle", home / "copies.u16"
    write_copies(copies, args)
    run(args, "convert", args.checkpoint, "-o", bundle, "--recipe", recipe, "--seed", seed, "--no-verify")
    data = ["--data", args.train, "--valid", args.valid, "--batch", args.batch, "--context", args.context]
    data += ["--validation-windows", args.windows, "--device", args.device, "--seed", seed]
    row = {"recipe": Path(recipe).stem, "seed": seed}
    row["converted"] = perplexity(args, bundle, args.valid, args.context)
    try:
        run(args, "calibrate", bundle, *data, "--steps", args.calibrate, "--lr", "0.03")
        row["calibrated"] = perplexity(args, bundle, args.valid, args.context)
    except RuntimeError as error:
        if NOTHING not in str(error):
            raise
        row["not_calibrated"] = str(error).strip().splitlines()[-1]
    run(args, "finetune", bundle, *data, "--steps", args.finetune, *FINETUNE)
    row["tuned"] = perplexity(args, bundle, args.valid, args.context)
    row["tuned_long"] = perplexity(args, bundle, args.valid, 4 * args.context)
    row["copied"] = perplexity(args, bundle, copies, args.context)
    return row


def table(rows):
    print("| recipe | " + " | ".join(COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        cells = []
        for column in COLUMNS:
            found = [row[column] for row in rows if row["recipe"] == recipe and column in row]
            mean = statistics.fmean(found) if found else None
            apart = max((abs(value - mean) for value in found), default=0.0)
            cells.append("–" if mean is None else f"{mean:.2f} ± {apart:.2f}")
        print(f"| {recipe} | " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--valid", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--device", default="cpu")
    for name, default in [("calibrate", 158), ("finetune", 256), ("batch", 16), ("context", 512), ("windows", 64)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, help="where bundles are made, one after the other")
    args = parser.parse_args()
    rows, failed = [], False
    for seed in args.seeds:
        for recipe in args.recipes:
            with tempfile.TemporaryDirectory(dir=args.out) as home:
                try:
                    rows.append(one(args, recipe, seed, Path(home)))
                    print(json.dumps(rows[-1]), flush=True)
                except RuntimeError as error:
                    failed = True
                    print(error, file=sys.stderr, flush=True)
    table(rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
