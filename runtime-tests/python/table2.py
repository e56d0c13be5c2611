"""The paper's Table 2 and Figure 2 on a checkpoint: one row per recipe, at equal tokens and one schedule.

    python3 runtime-tests/python/table2.py DIJIANG CHECKPOINT --train TRAIN.u16 --valid VALID.u16 --data DIR
        [--recipes linformer cosformer …] [--rows ROWS.jsonl] [--curves DIR] [--device cuda:0] [--steps 256] [--limit 200] [--redraw STEPS]
    python3 runtime-tests/python/table2.py --table ROWS.jsonl…

Each recipe is converted, fine-tuned by `dijiang finetune` for --steps steps (of --batch x --context tokens) and measured:
perplexity of VALID at --context tokens and at four times as many, the first --limit questions of the paper's six tasks by
their publishers' files in DIR (`eval_parity.py` names them), and keys found again over 256 tokens (`recall`). Nothing is
calibrated, as most of the methods have nothing for it. `softmax` is trained without a teacher, the others with the model
as it came. A row is appended to ROWS as it ends, so that runs may be of several days; --curves keeps each run's
metrics.jsonl, for `dijiang plot`. --table prints them in the order of the mean accuracy, with the place that the paper's
Table 2 gives the method. Exit: 0 all ran, 1 a command failed.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from ablation import run
from eval_parity import FILES

# Places among the linear models of the paper's Table 2, by its column Avg. Its WSC is SuperGLUE's.
PAPER = {"paper": 1, "pff": 2, "performer": 3, "cosformer": 4, "linformer": 5, "retnet": 6}
TASKS = list(FILES)


def perplexities(args, bundle):
    contexts = [args.context, 4 * args.context]
    joined = ",".join(map(str, contexts))
    words = ["eval", bundle, "--perplexity", args.valid, "--context", joined, "--max-tokens", args.windows * args.context]
    found = run(args, *words, "--device", args.device, "--json")["results"]
    return {str(result["context"]): result["value"] for result in found}


def answers(args, bundle):
    tasks = [word for name in TASKS for word in ("--task", f"{name}={args.data / FILES[name][0]}")]
    found = run(args, "eval", bundle, *tasks, "--limit", args.limit, "--device", args.device, "--json")["results"]
    return {result["task"]: [result["value"], result["standard_error"]] for result in found if result["metric"] == "acc"}


def recall(args, bundle):
    words = ["eval", bundle, "--task", "recall", "--context", 256, "--device", args.device, "--json"]
    found = [result for result in run(args, *words)["results"] if result["metric"] == "acc"]
    return [found[0]["value"], found[0]["standard_error"]]


def one(args, recipe, home):
    bundle, redraw = home / "bundle", ["--redraw", args.redraw] if args.redraw else []
    name = Path(recipe).stem + (f", redrawn every {args.redraw} steps" if args.redraw else "")
    run(args, "convert", args.checkpoint, "-o", bundle, "--recipe", recipe, "--seed", args.seed, "--no-verify")
    row = {"recipe": name, "seed": args.seed, "tokens": args.steps * args.batch * args.context}
    row["converted"] = perplexities(args, bundle)
    teacher = "none" if name == "softmax" else "self"
    data = ["--data", args.train, "--valid", args.valid, "--validation-windows", args.windows, "--validate-every", 32]
    size = ["--batch", args.batch, "--context", args.context, "--steps", args.steps, "--device", args.device]
    run(args, "finetune", bundle, *data, *size, "--seed", args.seed, "--teacher", teacher, *redraw)
    if args.curves:
        args.curves.mkdir(parents=True, exist_ok=True)
        shutil.copy(bundle / "train" / "metrics.jsonl", args.curves / f"{name}-{args.seed}.jsonl")
    return row | {"perplexity": perplexities(args, bundle), "tasks": answers(args, bundle), "recall": recall(args, bundle)}


def mean(row):
    return statistics.fmean(row["tasks"][task][0] for task in TASKS)


def table(rows):
    contexts = sorted(rows[0]["perplexity"], key=int)
    heads = ["recipe", "tokens", *(f"perplexity at {context}" for context in contexts), *TASKS, "mean", "recall", "paper's place"]
    print("| " + " | ".join(heads) + " |")
    print("|---" * len(heads) + "|")
    for row in sorted(rows, key=mean, reverse=True):
        shares = [f"{value:.3f} ± {error:.3f}" for value, error in (*(row["tasks"][task] for task in TASKS), row["recall"])]
        cells = [row["recipe"], f"{row['tokens']:,}", *(f"{row['perplexity'][context]:.2f}" for context in contexts)]
        cells += [*shares[:-1], f"{mean(row):.3f}", shares[-1], str(PAPER.get(row["recipe"], ""))]
        print("| " + " | ".join(cells) + " |")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path, nargs="?")
    parser.add_argument("checkpoint", type=Path, nargs="?")
    for name in ("train", "valid", "data", "rows", "curves"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--recipes", nargs="+", default=list(PAPER))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--redraw", type=int, help="draw random features anew every so many steps (performer)")
    for name, default in [("steps", 256), ("batch", 16), ("context", 512), ("windows", 64), ("limit", 200), ("seed", 0)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, help="where bundles are made, one after the other")
    parser.add_argument("--table", type=Path, nargs="+", help="print the rows of these files, and run nothing")
    args = parser.parse_args()
    if not args.table and not all((args.binary, args.checkpoint, args.train, args.valid, args.data)):
        parser.error("DIJIANG, CHECKPOINT, --train, --valid and --data are needed")
    return args


def main():
    args = arguments()
    if args.table:
        table([json.loads(line) for path in args.table for line in path.read_text().splitlines()])
        return 0
    rows, failed = [], False
    for recipe in args.recipes:
        with tempfile.TemporaryDirectory(dir=args.out) as home:
            try:
                rows.append(one(args, recipe, Path(home)))
            except RuntimeError as error:
                failed = True
                print(error, file=sys.stderr, flush=True)
                continue
        line = json.dumps(rows[-1])
        print(line, flush=True)
        if args.rows:
            with args.rows.open("a") as file:
                file.write(line + "\n")
    if rows:
        table(rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
