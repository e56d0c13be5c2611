"""The PyTorch model of a bundle (`dijiang export-torch`): logits equal to those of the graphs in ONNX Runtime,
gradients equal to differences, two processes equal to one, and trained weights back in the bundle.

DIJIANG is the path of the binary (by default target/debug/dijiang). Run by `./run-tests torch`; skipped where there is
no torch.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import numpy as np
import onnxruntime as ort

# What transformers copies the code to, and what it has to say of loading.
CACHE = tempfile.TemporaryDirectory()
os.environ |= {"HF_HOME": CACHE.name, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
try:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    import torch_gradients
except ImportError as missing:
    raise unittest.SkipTest(f"torch and transformers are not installed ({missing})")

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DIJIANG = os.environ.get("DIJIANG", str(ROOT / "target/debug/dijiang"))
RECIPES = sorted(path.stem for path in (ROOT / "converter/src/recipes").glob("*.yaml"))
FAMILIES = ["llama", "neox", "opt"]
# Fixtures with what the families' own do not have, and a model with a softmax layer left.
OTHERS = ["llama-linear", "llama-rope3", "ministral", "mistral", "neox-serial", "opt-postnorm", "shakespeare"]
HYBRID = "llama_hybrid"
# Chunks this short make four of the sequences below, whose last is not whole.
CHUNK, TIME = 8, 27
# What has left a window of few tokens, which a preset's is not.
LEAVING = {
    "leaving": """name: leaving
map: {kind: dct-unit}
rule: delta
decay: learned
local: {window: 5, sinks: 2}
feed: leaving
""",
    "joined": """name: joined
map: {kind: wdcf}
decay: fixed
local: {window: 5, sinks: 2}
feed: leaving
""",
    "joined_softmax": """name: joined_softmax
map: {kind: dct-softmax, features: 2, signs: true}
decay: learned
local: {window: 3}
feed: leaving
""",
}


def dijiang(*arguments):
    """Runs the binary and returns its JSON object."""
    command = [DIJIANG, *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"dijiang {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout)


def make_bundle(home, name, fixture, recipe, *options):
    """A bundle with short chunks and its PyTorch model."""
    text = LEAVING.get(recipe) or (ROOT / f"converter/src/recipes/{recipe}.yaml").read_text()
    file, bundle = home / f"{name}.yaml", home / name
    # Softmax has no chunks.
    file.write_text(text if recipe == "softmax" else f"{text}\nchunk: {CHUNK}\n")
    source = ROOT / "fixtures" / fixture
    dijiang("convert", source, "-o", bundle, "--recipe", file, "--no-verify", *options)
    dijiang("export-torch", bundle)
    return bundle


def load(bundle, dtype=torch.float32):
    model, found = AutoModelForCausalLM.from_pretrained(
        bundle, trust_remote_code=True, dtype=dtype, output_loading_info=True
    )
    problems = {key: value for key, value in found.items() if value}
    if problems:
        raise AssertionError(f"{bundle}: {problems}")
    return model


def tokens(model, batch=3, seed=0):
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, (batch, TIME))


def graph_logits(path, ids, mask):
    session = ort.InferenceSession(path)
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0),
    }
    sizes = {"batch": len(ids), "past": 0}
    for state in session.get_inputs():
        if state.name not in inputs:
            inputs[state.name] = np.zeros([sizes.get(d, d) for d in state.shape], dtype=np.float32)
    return session.run(["logits"], {i.name: inputs[i.name] for i in session.get_inputs()})[0]


def logits(model, ids, mask):
    with torch.no_grad():
        return model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()


def difference(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def forms(bundle):
    linear = [bundle / name for name in ("parallel.onnx", "chunked.onnx") if (bundle / name).exists()]
    return linear or [bundle / "softmax.onnx"]


class Torch(unittest.TestCase):
    # Both compute in f32. ONNX Runtime's erf, which GPT-NeoX's gelu needs, is a polynomial and the furthest off: 2e-5.
    LIMIT = 1e-4

    @classmethod
    def setUpClass(cls):
        home = tempfile.TemporaryDirectory()
        cls.addClassCleanup(home.cleanup)
        cls.home = pathlib.Path(home.name)
        cls.bundles = {}
        for family in FAMILIES:
            for recipe in [*RECIPES, *LEAVING]:
                cls.add(f"{family}_{recipe}", family, recipe)
        for fixture in OTHERS:
            cls.add(f"{fixture}_adaptive".replace("-", "_"), fixture, "adaptive")
        # Weights by position, for fewer positions than there are tokens.
        cls.add("authors_released", "authors-edited", "released")
        cls.add(HYBRID, "llama", "adaptive", "--layers", "1")

    @classmethod
    def add(cls, name, *how):
        cls.bundles[name] = make_bundle(cls.home, name, *how)

    def test_logits_equal_those_of_the_graphs(self):
        for name, bundle in self.bundles.items():
            with self.subTest(name):
                model = load(bundle).eval()
                ids, mask = tokens(model), np.ones((3, TIME), dtype=np.int64)
                for padding in (False, True):
                    if padding:
                        # More than a chunk before the text, and behind it.
                        mask[1, : CHUNK + 3] = 0
                        mask[2, -3:] = 0
                    real, found = mask.astype(bool), logits(model, ids, mask)
                    for form in forms(bundle):
                        expected = graph_logits(form, ids, mask)
                        self.assertLess(difference(found[real], expected[real]), self.LIMIT, form)

    def test_a_changed_decay_is_seen(self):
        bundle = self.bundles["llama_decayed"]
        model, mask = load(bundle).eval(), np.ones((3, TIME), dtype=np.int64)
        for layer in model.layers:
            layer.self_attn.dijiang.log_decay.mul_(1.1)
        ids = tokens(model)
        expected = graph_logits(bundle / "parallel.onnx", ids, mask)
        self.assertGreater(difference(logits(model, ids, mask), expected), self.LIMIT)

    def test_chunks_equal_the_recurrence_token_by_token(self):
        code = sys.modules[type(load(self.bundles["llama_adaptive"])).__module__]
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)
        q, k, v = draw(2, 3, TIME, 5), draw(2, 1, TIME, 5), draw(2, 1, TIME, 4)
        for log_decay in (None, -draw(2, 1, TIME)):
            state, expected = torch.zeros(2, 1, 5, 4, dtype=torch.float64), []
            for t in range(TIME):
                decay = 1.0 if log_decay is None else log_decay[..., t, None, None].exp()
                state = state * decay + k[..., t, :, None] * v[..., t, None, :]
                expected.append((q[..., t, None, :] @ state).squeeze(-2))
            expected = torch.stack(expected, dim=-2)
            for size in (1, 4, CHUNK, TIME, 2 * TIME):
                # Sums of some 30 positive numbers in f64.
                torch.testing.assert_close(code.chunked(q, k, v, log_decay, size), expected, rtol=1e-12, atol=0)

    def test_gradients_equal_differences(self):
        """Along one random direction through all weights at once, in f64."""
        for name, bundle in self.bundles.items():
            with self.subTest(name):
                model = torch_gradients.load(bundle, torch.float64)
                ids = torch.from_numpy(tokens(model))
                mask = torch.ones_like(ids)
                mask[1, :CHUNK] = 0
                labels = ids.masked_fill(mask == 0, -100)
                _, gradients = torch_gradients.loss_and_gradients(model, ids, labels, mask)
                named = torch_gradients.weights(model)
                stored = {n for n in load_file(bundle / "model.safetensors") if not n.startswith("grouped_attention.")}
                self.assertEqual(set(gradients), stored)
                generator = torch.Generator().manual_seed(0)
                direction = {n: torch.randn(w.shape, generator=generator, dtype=w.dtype) for n, w in named.items()}
                slope = sum((gradients[n] * direction[n]).sum() for n in named)
                step, losses = 1e-6, []
                for sign in (1, -1):
                    moved = {n: w.detach() + sign * step * direction[n] for n, w in named.items()}
                    with torch.no_grad():
                        losses.append(torch.func.functional_call(model, moved, (ids, mask), {"labels": labels}).loss)
                # The difference loses some ten of sixteen digits, and step² of the curvature.
                measured = (losses[0] - losses[1]) / (2 * step)
                torch.testing.assert_close(measured, slope, rtol=1e-5, atol=1e-8)

    def test_every_recipe_trains(self):
        for name, bundle in self.bundles.items():
            with self.subTest(name):
                model = load(bundle).train()
                ids = torch.from_numpy(tokens(model))
                model(ids, labels=ids).loss.backward()
                for weight, parameter in model.named_parameters():
                    if ".dijiang." in weight:
                        self.assertGreater(parameter.grad.norm(), 0, weight)
                losses, norms = torch_gradients.train(model, ids[None], steps=8, lr=3e-3)
                self.assertTrue(np.isfinite(losses + norms).all())
                self.assertLess(losses[-1], 0.9 * losses[0])

    def test_recomputed_activations_give_the_same_gradients(self):
        model = load(self.bundles["llama_adaptive"], torch.float64).train()
        ids = torch.from_numpy(tokens(model))
        found = []
        for recompute in (False, True):
            if recompute:
                model.gradient_checkpointing_enable()
            model.zero_grad()
            model(ids, labels=ids).loss.backward()
            found.append([p.grad.clone() for p in model.parameters()])
        for once, again in zip(*found):
            self.assertTrue(torch.equal(once, again))

    def test_half_precision_keeps_what_the_bundle_has_in_f32(self):
        model = load(self.bundles["llama_adaptive"], torch.bfloat16)
        types = {".dijiang." in name: set() for name in torch_gradients.weights(model)}
        for name, tensor in torch_gradients.weights(model).items():
            types[".dijiang." in name].add(tensor.dtype)
        self.assertEqual(types, {True: {torch.float32}, False: {torch.bfloat16}})
        ids = torch.from_numpy(tokens(model))
        with torch.no_grad():
            self.assertTrue(model(ids, labels=ids).loss.isfinite())

    def test_generated_tokens_are_the_likeliest(self):
        model = load(self.bundles["shakespeare_adaptive"]).eval()
        ids = torch.from_numpy(tokens(model, batch=2))
        found = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None)
        for _ in range(5):
            with torch.no_grad():
                ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), dim=1)
        self.assertTrue(torch.equal(found, ids))

    def step(self, bundle, ids, how):
        """The weights after one step, alone or in two processes."""
        data, out = self.home / "tokens.npy", self.home / f"{how}.safetensors"
        np.save(data, ids)
        many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        start = [sys.executable, *(many if how != "alone" else [])]
        command = [*start, HERE / "torch_step.py", bundle, data, out, how]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        return load_file(out)

    def test_two_processes_take_the_step_of_one(self):
        for name in ["llama_adaptive", "neox_released", "opt_paper"]:
            bundle = self.bundles[name]
            with self.subTest(name):
                before = load_file(bundle / "model.safetensors")
                ids = tokens(load(bundle), batch=4)
                alone = self.step(bundle, ids, "alone")
                self.assertEqual(set(alone), set(before))
                self.assertTrue(any(not torch.equal(alone[w], before[w].double()) for w in alone))
                for how in ("ddp", "fsdp"):
                    both = self.step(bundle, ids, how)
                    self.assertEqual(set(both), set(alone))
                    for weight in alone:
                        # A step is 1e-2. AdamW divides a gradient by its size, which magnifies the rounding
                        # (f64) of small ones; those that are zero but for rounding stay below eps, 1e-8.
                        label = f"{how} {weight}"
                        torch.testing.assert_close(both[weight], alone[weight], rtol=0, atol=1e-8, msg=label)

    def test_trained_weights_go_back_into_the_bundle(self):
        for family in FAMILIES:
            with self.subTest(family):
                bundle = make_bundle(self.home, f"{family}_trained", family, "adaptive", "--dtype", "f32")
                model = load(bundle).train()
                ids, mask = tokens(model), np.ones((3, TIME), dtype=np.int64)
                before = logits(model, ids, mask)
                torch_gradients.train(model, torch.from_numpy(ids)[None], steps=2, lr=1e-3)
                trained = self.home / f"{family}_weights"
                model.save_pretrained(trained)
                self.assertEqual(dijiang("import-weights", bundle, trained)["cast"], [])
                found = logits(model, ids, mask)
                self.assertGreater(difference(found, before), 1e-2)
                for form in forms(bundle):
                    self.assertLess(difference(graph_logits(form, ids, mask), found), self.LIMIT)
                again = load(bundle).state_dict()
                for name, tensor in model.state_dict().items():
                    self.assertTrue(torch.equal(again[name], tensor), name)

    def test_a_tied_projection_may_be_saved_again(self):
        bundle = make_bundle(self.home, "tied", "llama", "paper", "--dtype", "f32")
        file = self.home / "tied.safetensors"
        state = load_file(bundle / "model.safetensors")
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
        save_file(state, file)
        self.assertEqual(dijiang("import-weights", bundle, file)["tensors"], len(state) - 1)
        state["lm_head.weight"][0, 0] += 1
        save_file(state, file)
        with self.assertRaisesRegex(AssertionError, "`lm_head.weight` is not what `model.embed_tokens.weight` is"):
            dijiang("import-weights", bundle, file)


if __name__ == "__main__":
    unittest.main()
