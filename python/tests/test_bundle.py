"""The Python package beside the binary. Run by `./run-tests python`; DIJIANG is the path of the binary."""

import contextlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python"))
os.environ.setdefault("DIJIANG", str(ROOT / "target/debug/dijiang"))

import dijiang  # noqa: E402

FIXTURE = ROOT / "fixtures/shakespeare"
# A state of constant size with windows, one without, and a cache that grows.
RECIPES = ["adaptive", "gated", "softmax"]
PROMPT, NEW = "ROMEO:\nWhat ", 40


def binary(bundle, prompt, new):
    words = [os.environ["DIJIANG"], "generate", str(bundle), "--prompt", prompt, "-n", str(new), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return done.stdout


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.home = tempfile.TemporaryDirectory()
        cls.bundles = {}
        for recipe in RECIPES:
            cls.bundles[recipe] = pathlib.Path(cls.home.name) / recipe
            dijiang.convert(FIXTURE, cls.bundles[recipe], recipe=recipe, no_verify=True, force=False, dtype=None)

    @classmethod
    def tearDownClass(cls):
        cls.home.cleanup()

    def test_greedy_text_is_that_of_the_binary(self):
        for recipe, path in self.bundles.items():
            with self.subTest(recipe):
                found = dijiang.Bundle(path).generate(PROMPT, NEW)
                expected = json.loads(binary(path, PROMPT, NEW))
                self.assertEqual(found, expected["text"].removeprefix(PROMPT))

    def test_a_stream_is_the_text_in_pieces(self):
        bundle = dijiang.Bundle(self.bundles["adaptive"])
        whole = bundle.generate(PROMPT, NEW)
        bundle.reset()
        pieces = list(bundle.generate(PROMPT, NEW, stream=True))
        self.assertEqual("".join(pieces), whole)
        self.assertGreater(len(pieces), 1)

    def test_tokens_in_portions_give_the_logits_of_the_whole(self):
        for recipe, path in self.bundles.items():
            with self.subTest(recipe):
                bundle, tokens = dijiang.Bundle(path), list(PROMPT.encode())
                whole = bundle.feed(tokens)[-1]
                bundle.reset()
                for token in tokens:
                    last = bundle.feed([token])[-1]
                # f16 weights; plain operators keep f32 between them on a CPU, and others round.
                self.assertLess(abs(last - whole).max() / abs(whole).max(), 2e-2)

    def test_a_state_of_constant_size_does_not_grow_and_can_be_put_back(self):
        bundle = dijiang.Bundle(self.bundles["adaptive"])
        bundle.feed(list(PROMPT.encode()))
        size = sum(array.nbytes for array in bundle.state.values())
        kept, length = dict(bundle.state), bundle.length
        first = bundle.generate([66], 8)
        self.assertEqual(sum(array.nbytes for array in bundle.state.values()), size)
        bundle.state, bundle.length = kept, length
        self.assertEqual(bundle.generate([66], 8), first)

    def test_what_was_given_is_in_the_state(self):
        bundle, whole = (dijiang.Bundle(self.bundles["gated"]) for _ in range(2))
        tokens = list(PROMPT.encode())
        whole.feed(tokens + bundle.generate(tokens, 4))
        self.assertEqual(bundle.length, whole.length)
        found, expected = bundle.feed([66]), whole.feed([66])
        # As for tokens in portions.
        self.assertLess(abs(found - expected).max() / abs(expected).max(), 2e-2)

    def test_tokens_are_chosen_by_the_caller(self):
        bundle, second = dijiang.Bundle(self.bundles["gated"]), lambda logits: int(logits.argsort()[-2])
        expected = [second(bundle.feed([65])[-1])]
        expected.append(second(bundle.feed(expected)[-1]))
        bundle.reset()
        self.assertEqual(bundle.generate([65], 2, choose=second), expected)
        bundle.reset()
        self.assertNotEqual(bundle.generate([65], 2), expected)

    def test_a_bundle_that_numpy_has_no_numbers_for_is_refused(self):
        path = pathlib.Path(self.home.name) / "bf16"
        dijiang.convert(FIXTURE, path, recipe="gated", no_verify=True, dtype="bf16")
        with self.assertRaisesRegex(dijiang.BundleError, "convert with --dtype f32 or f16"):
            dijiang.Bundle(path)

    def test_options_are_words_of_the_call(self):
        measured = dijiang.run("eval", self.bundles["gated"], task=["copy"], context=[32], limit=1)
        self.assertEqual({one["task"] for one in measured["results"]}, {"copy"})
        said = dijiang.run("generate", self.bundles["gated"], p="ROMEO:", n=4)
        self.assertEqual(len(said["tokens"]), 4)
        with self.assertRaisesRegex(ValueError, "no object"):
            dijiang.run("eval", help=True)
        with self.assertRaisesRegex(dijiang.CommandError, "--limits"):
            dijiang.run("eval", self.bundles["gated"], task="copy", limits=1)

    def test_a_cache_of_softmax_grows(self):
        bundle = dijiang.Bundle(self.bundles["softmax"])
        bundle.feed([65, 66])
        two = sum(array.nbytes for array in bundle.state.values())
        bundle.feed([67])
        self.assertGreater(sum(array.nbytes for array in bundle.state.values()), two)

    def test_what_is_no_bundle_is_told(self):
        with self.assertRaisesRegex(dijiang.BundleError, "no bundle"):
            dijiang.Bundle(FIXTURE)
        with self.assertRaisesRegex(dijiang.BundleError, "at least one"):
            dijiang.Bundle(self.bundles["gated"]).generate([])
        with self.assertRaisesRegex(dijiang.BundleError, "token ids"):
            dijiang.Bundle(self.bundles["gated"]).generate(["a"])
        with self.assertRaisesRegex(dijiang.BundleError, "CPUExecutionProvider"):
            dijiang.Bundle(self.bundles["gated"], providers=["NoProvider"])
        with self.assertRaisesRegex(dijiang.BundleError, "the tokens 0 to 255; 65 to 256 were given"):
            dijiang.Bundle(self.bundles["gated"]).feed([65, 256])
        with self.assertRaises(dijiang.CommandError) as raised:
            dijiang.convert(FIXTURE, self.bundles["gated"], "--no-verify")
        self.assertEqual(raised.exception.code, 2)
        self.assertIn("--force", str(raised.exception))

    def test_adapt_says_how_far_it_is_and_goes_on(self):
        path = pathlib.Path(self.home.name) / "adapted"
        options = ["--recipe", "gated", "--tokens", "2048", "--batch", "2", "--context", "32", "--no-verify"]
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            found = dijiang.adapt(FIXTURE, path, FIXTURE / "train.txt", *options, verbose=True)
        self.assertIn("to calibrate and", said.getvalue())
        self.assertGreater(found["finetuned"]["steps"], 0)
        self.assertEqual(dijiang.adapt(FIXTURE, path, FIXTURE / "train.txt", *options), found)
        with self.assertRaisesRegex(dijiang.CommandError, "was begun with --seed"):
            dijiang.adapt(FIXTURE, path, FIXTURE / "train.txt", *options, "--seed", "7")

    def test_info_is_an_object(self):
        self.assertEqual(dijiang.info(self.bundles["gated"])["recipe"], "gated")

    def test_the_snippet_of_the_readme_runs(self):
        (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "python/README.md").read_text(), re.DOTALL)
        said, before = io.StringIO(), pathlib.Path.cwd()
        with tempfile.TemporaryDirectory() as home:
            (pathlib.Path(home) / "fixtures").symlink_to(ROOT / "fixtures")
            os.chdir(home)
            try:
                with contextlib.redirect_stdout(said):
                    exec(compile(snippet, "python/README.md", "exec"), {})
            finally:
                os.chdir(before)
        self.assertRegex(said.getvalue(), r"\d+ bytes of state")


if __name__ == "__main__":
    unittest.main()
