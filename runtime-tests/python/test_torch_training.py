"""The gradients and the AdamW steps of a bundle's training graphs, run by ONNX Runtime, against PyTorch's on
the model of `dijiang export-torch`: every family and every recipe.

DIJIANG is the path of the binary (by default target/debug/dijiang). Run by `./run-tests torch`; skipped where there is
no torch.
"""

import json
import pathlib
import shutil
import tempfile
import unittest

import numpy as np
import onnxruntime as ort

from test_torch import FAMILIES, LEAVING, RECIPES, dijiang, load, make_bundle, torch

import torch_gradients

ROWS, TIME = 4, 24
# f32 sums in another order, relative to the norm of a parameter's gradient. A gradient that is a sum of
# terms thousands of times larger than itself has fewer digits, so small ones are taken relative to a
# thousandth of the largest.
GRADIENTS = 1e-4
LOSSES = 1e-3
STEPS = 20
# A norm after scores of both signs turns what is read of the first token of a row around where its score is as near to zero
# as f32 rounds it: the two runs part there, and are compared until then.
STEPS_OF = {"retnet": 10}


class Training(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.home = pathlib.Path(tempfile.mkdtemp())

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.home)

    def bundles(self):
        for family in FAMILIES:
            for recipe in [*RECIPES, *LEAVING]:
                name = f"{family}_{recipe}"
                bundle = make_bundle(self.home, name, family, recipe, "--dtype", "f32", "--force")
                with self.subTest(name):
                    yield bundle

    def train(self, bundle, rows, *options):
        """Trains on exactly these rows, all of them in each step."""
        data = self.home / "rows.u16"
        rows.astype("<u2").tofile(data)
        size = ["--batch", ROWS, "--context", TIME, "--schedule", "constant", "--warm-up", 0]
        size += ["--teacher", "none", "--weight-decay", 0.1]
        return dijiang("finetune", bundle, "--data", data, "--valid", data, *size, *options)

    def rows(self, model):
        return np.random.default_rng(1).integers(0, model.config.vocab_size, (ROWS, TIME))

    def test_gradients(self):
        worst = {}
        for bundle in self.bundles():
            model = load(bundle).train()
            rows = self.rows(model)
            loss, expected = torch_gradients.loss_and_gradients(model, torch.from_numpy(rows))
            # A rate of zero leaves the weights as they were.
            self.train(bundle, rows, "--steps", 1, "--lr", 0)
            found_loss, found = self.gradients(bundle, model, rows)
            self.assertAlmostEqual(found_loss, float(loss), delta=1e-5 * float(loss))
            largest = max(float(expected[name].norm()) for name in found)
            for name, gradient in found.items():
                norm = max(float(expected[name].norm()), 1e-3 * largest)
                error = float((torch.from_numpy(gradient) - expected[name].detach()).norm()) / norm
                worst[bundle.name] = max(worst.get(bundle.name, 0), error)
                self.assertLess(error, GRADIENTS, f"{bundle.name} {name}")
        print("worst relative error of a gradient:", {k: f"{v:.1e}" for k, v in worst.items()})

    def gradients(self, bundle, model, rows):
        """The loss and the gradients that the graph gives, by name."""
        session = ort.InferenceSession(bundle / "train/gradients.onnx", providers=["CPUExecutionProvider"])
        trained = dict(model.named_parameters())
        feeds = {f"parameter.{n}": p.detach().numpy() for n, p in trained.items()}
        outputs = [output.name for output in session.get_outputs()]
        got = dict(zip(outputs, session.run(None, {"input_ids": rows, "labels": rows, **feeds})))
        return float(got["loss"]), {name: got[f"gradient.{name}"] for name in trained}

    def test_steps(self):
        for bundle in self.bundles():
            model = load(bundle).train()
            rows = self.rows(model)
            batches = torch.from_numpy(rows)[None]
            expected, _ = torch_gradients.train(model, batches, STEPS, 1e-3, 5.0)
            self.train(bundle, rows, "--steps", STEPS, "--lr", 1e-3, "--new-lr", 5)
            lines = (bundle / "train/metrics.jsonl").read_text().splitlines()
            losses = [json.loads(line)["loss"] for line in lines]
            steps = STEPS_OF.get(bundle.name.split("_", 1)[1], STEPS)
            np.testing.assert_allclose(losses[:steps], expected[:steps], rtol=LOSSES, err_msg=bundle.name)


if __name__ == "__main__":
    unittest.main()
