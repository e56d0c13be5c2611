"""Holds `dijiang eval` to lm-evaluation-harness: the same questions, by both, over one checkpoint.

    eval_parity.py CHECKPOINT BUNDLE DATA WORK [--dijiang PROGRAM] [--tasks piqa,…] [--limit 300] [--threads 2]

CHECKPOINT is a Hugging Face model, BUNDLE what `dijiang convert CHECKPOINT --recipe softmax` made of it, DATA a
directory with the publishers' files (see FILES). The harness reads them as local JSON data sets, in the columns that its
own data sets have, and both tokenise by the checkpoint's tokenizer.json: transformers 5 makes another tokenizer of one whose
`tokenizer_class` is LlamaTokenizer. What the harness answered stays in WORK, and is not computed again. Needs `lm_eval`,
torch, transformers and accelerate.
"""

import argparse
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

# Of each task: the publishers' file, the harness's description, the split that it reads.
FILES = {
    "piqa": ("piqa_valid.jsonl", "piqa/piqa.yaml", "validation"),
    "winogrande": ("winogrande_dev.jsonl", "winogrande/default.yaml", "validation"),
    "wsc273": ("WSCollection.xml", "wsc273/default.yaml", "test"),
    "arc_easy": ("arc_easy_test_genmc.jsonl", "arc/arc_easy.yaml", "test"),
    "arc_challenge": ("arc_challenge_test_genmc.jsonl", "arc/arc_challenge.yaml", "test"),
    "logiqa": ("logiqa_Eval.txt", "logiqa/logiqa.yaml", "validation"),
}
SPLITS = ["training", "validation", "test"]
# What is required.
AGREEMENT, RELATIVE = 0.99, 1e-3


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def piqa(path):
    labels = path.with_name(path.stem + "-labels.lst").read_text().split()
    return [row | {"label": int(label)} for row, label in zip(lines(path), labels, strict=True)]


def winogrande(path):
    return [{key: row[key] for key in ["sentence", "option1", "option2", "answer"]} for row in lines(path)]


def arc(path):
    def row(line):
        choices = line["question"]["choices"]
        columns = {key: [choice[key] for choice in choices] for key in ["text", "label"]}
        return {"question": line["question"]["stem"], "choices": columns, "answerKey": line["answerKey"]}

    return [row(line) for line in lines(path)]


def logiqa(path):
    def spaced(text):
        return text.replace(".", ". ").strip()

    def row(block):
        label, context, question, *options = block.split("\n")
        return {
            "label": label.strip(),
            "context": spaced(context),
            "question": spaced(question),
            "options": [spaced(option[2:]) for option in options],
        }

    return [row(block) for block in path.read_text(encoding="utf-8").strip().split("\n\n")]


def wsc273(path):
    def words(text):
        return " ".join((text or "").split())

    def row(schema):
        left, pronoun, right = (words(schema.findtext(f"text/{tag}")) for tag in ["txt1", "pron", "txt2"])
        return {
            "text": " ".join([left, pronoun, right]).strip(),
            "pronoun": pronoun,
            "pronoun_loc": len(left) + 1 if left else 0,
            "options": [words(answer.text) for answer in schema.findall("answers/answer")],
            "label": int("B" in words(schema.findtext("correctAnswer"))),
        }

    return [row(schema) for schema in ElementTree.parse(path).getroot()][:273]


READERS = {
    "piqa": piqa,
    "winogrande": winogrande,
    "wsc273": wsc273,
    "arc_easy": arc,
    "arc_challenge": arc,
    "logiqa": logiqa,
}


def description(task, harness, work, data):
    """The harness's own description of a task, over a local file."""
    file, yaml, split = FILES[task]
    rows = READERS[task](data / file)
    local = work / f"{task}.data.jsonl"
    local.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = [
        f"include: {harness / yaml}",
        f"task: local_{task}",
        "tag: null",
        "dataset_path: json",
        "dataset_name: null",
        f"dataset_kwargs: {{data_files: {{{split}: {local.resolve()}}}}}",
        *[f"{other}_split: null" for other in SPLITS if other != split],
        f"{split}_split: {split}",
    ]
    folder = work / "tasks"
    folder.mkdir(exist_ok=True)
    (folder / f"local_{task}.yaml").write_text("\n".join(text) + "\n")
    return folder


def tokenizer(checkpoint):
    from transformers import PreTrainedTokenizerFast

    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    named = {name: config[name] for name in ["bos_token", "eos_token", "pad_token"] if isinstance(config.get(name), str)}
    return PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json"), **named)


def harness_answers(task, given):
    """Of each question the log-likelihoods of its choices, as the harness has them."""
    kept = given.work / f"{task}.{given.limit}.harness.json"
    if kept.exists():
        return json.loads(kept.read_text())
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    torch.set_num_threads(given.threads)
    folder = description(task, Path(lm_eval.__file__).parent / "tasks", given.work, given.data)
    model = HFLM(
        pretrained=str(given.checkpoint),
        tokenizer=tokenizer(given.checkpoint),
        dtype="float32",
        device="cpu",
        batch_size=8,
    )
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=[f"local_{task}"],
        task_manager=TaskManager(include_path=str(folder)),
        limit=given.limit,
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = sorted(found["samples"][f"local_{task}"], key=lambda sample: sample["doc_id"])
    answers = [[float(likelihood) for likelihood, _ in sample["filtered_resps"]] for sample in samples]
    results = {key: value for key, value in found["results"][f"local_{task}"].items() if "acc" in key}
    whole = {"log_likelihoods": answers, "results": results}
    kept.write_text(json.dumps(whole))
    return whole


def our_answers(task, given):
    samples = given.work / f"{task}.ours.jsonl"
    call = [given.dijiang, "eval", given.bundle, "--task", f"{task}={given.data / FILES[task][0]}"]
    call += ["--limit", str(given.limit), "--samples", samples, "--threads", str(given.threads), "--json"]
    done = subprocess.run([str(word) for word in call], check=True, stdout=subprocess.PIPE, text=True)
    results = {row["metric"]: row["value"] for row in json.loads(done.stdout)["results"]}
    return {"log_likelihoods": [row["log_likelihoods"] for row in lines(samples)], "results": results}


def compared(task, given):
    theirs, ours = harness_answers(task, given), our_answers(task, given)
    pairs = list(zip(theirs["log_likelihoods"], ours["log_likelihoods"], strict=True))
    same = sum(a.index(max(a)) == b.index(max(b)) for a, b in pairs) / len(pairs)
    errors = [abs(x - y) / abs(x) for a, b in pairs for x, y in zip(a, b, strict=True)]
    close = same >= AGREEMENT and max(errors) <= RELATIVE
    scores = ", ".join(
        f"{metric} {value:.4f} ({theirs['results'][metric + ',none']:.4f})" for metric, value in ours["results"].items()
    )
    print(f"{task}: {len(pairs)} questions, the same choice on {same:.2%}, log-likelihoods within {max(errors):.1e}; {scores}")
    return close


def main():
    parser = argparse.ArgumentParser()
    for name in ["checkpoint", "bundle", "data", "work"]:
        parser.add_argument(name, type=Path)
    parser.add_argument("--dijiang", default="dijiang")
    parser.add_argument("--tasks", default=",".join(FILES))
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only-harness", action="store_true", help="compute what is kept in WORK, and no more")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    tasks = given.tasks.split(",")
    if given.only_harness:
        for task in tasks:
            harness_answers(task, given)
        return
    sys.exit(0 if all([compared(task, given) for task in tasks]) else 1)


if __name__ == "__main__":
    main()
