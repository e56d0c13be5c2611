"""Bundles in onnxruntime-genai, as it opens them itself: greedy tokens equal to those of `dijiang generate`.

DIJIANG is the path of the binary (by default target/debug/dijiang). Run by `./run-tests genai`.
"""

import itertools
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import numpy as np
import onnxruntime_genai as og

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIJIANG = os.environ.get("DIJIANG", str(ROOT / "target/debug/dijiang"))
FIXTURE = ROOT / "fixtures/shakespeare"

RECIPES = ["gated", "paper", "released", "softmax"]
PROMPT = "ROMEO:"
OTHER_PROMPT = "First Citizen:\nBefore we "
NEW_TOKENS = 40


def dijiang(*arguments):
    """Runs the binary and returns its JSON object."""
    done = subprocess.run(
        [DIJIANG, *map(str, arguments), "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise AssertionError(f"dijiang {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout)


def ids(prompt):
    """The fixture's tokens are bytes."""
    return np.frombuffer(prompt.encode(), dtype=np.uint8).astype(np.int32)


def windowed(folder):
    """The fixture with a window in every layer, which the prompts below are longer than."""
    shutil.copytree(FIXTURE, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mistral", "sliding_window": 5}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def generator(model, batch, longest):
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(
        batch_size=batch, max_length=longest + NEW_TOKENS, do_sample=False
    )
    return og.Generator(model, parameters)


def continued(generator, row=0):
    """The next tokens of one row."""
    tokens = []
    while len(tokens) < NEW_TOKENS:
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[row]))
    return tokens


def alone(model, prompt):
    run = generator(model, 1, len(prompt))
    run.append_tokens(ids(prompt))
    return continued(run)


class Genai(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        home = tempfile.TemporaryDirectory()
        cls.addClassCleanup(home.cleanup)
        cls.bundles = {}
        model = windowed(pathlib.Path(home.name) / "model")
        for dtype in ["f32", "f16"]:
            bundle = pathlib.Path(home.name) / f"windows {dtype}"
            dijiang("convert", model, "-o", bundle, "--dtype", dtype, "--no-verify")
            cls.bundles[bundle.name] = bundle
        for recipe, dtype in itertools.product(RECIPES, ["f32", "f16"]):
            bundle = pathlib.Path(home.name) / f"{recipe} {dtype}"
            dijiang("convert", FIXTURE, "-o", bundle, "--recipe", recipe, "--dtype", dtype, "--no-verify")
            cls.bundles[bundle.name] = bundle

    def test_greedy_tokens_equal_dijiang_generate(self):
        for name, bundle in self.bundles.items():
            with self.subTest(name):
                ours = dijiang("generate", bundle, "--prompt", PROMPT, "-n", NEW_TOKENS)["tokens"]
                self.assertEqual(len(ours), NEW_TOKENS)
                self.assertEqual(alone(og.Model(str(bundle)), PROMPT), ours)

    def test_a_padded_batch_equals_each_prompt_alone(self):
        prompts = [PROMPT, OTHER_PROMPT]
        for name, bundle in self.bundles.items():
            # Another batch is another order of sums, which in f16 may turn a near tie.
            if name.endswith("f16"):
                continue
            with self.subTest(name):
                model = og.Model(str(bundle))
                longest = max(map(len, prompts))
                run = generator(model, len(prompts), longest)
                run.append_tokens(padded(prompts))
                rows = [[], []]
                for _ in range(NEW_TOKENS):
                    run.generate_next_token()
                    for row, token in zip(rows, run.get_next_tokens()):
                        row.append(int(token))
                self.assertEqual(rows, [alone(model, prompt) for prompt in prompts])


def padded(prompts):
    """genai finds padding at the end of a row alone, by the pad_token_id of genai_config.json: 0 for this model."""
    longest = max(map(len, prompts))
    return np.stack([np.pad(ids(p), (0, longest - len(p))) for p in prompts])


if __name__ == "__main__":
    unittest.main()
