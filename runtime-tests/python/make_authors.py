#!/usr/bin/env python3
"""make_authors.py [OUT]: tiny GPT-NeoX checkpoints as the authors' released code saves them, with reference logits.

OUT is `fixtures` of the repository where it is left out. Needs numpy alone. Each folder holds `config.json`,
`model.safetensors` and `reference.safetensors`: `input_ids` and `attention_mask` (i64, the mask all ones) and `logits`
(f32), computed here in f64, token against token, from the formulas of the released code and the weights as stored.

    n_t = D1[h, t] f(q_t) · Σ_{j≤t} D2[h, j] f(k_j) v_j,    f(x) = softmax(x P)
    y = GroupNorm(d groups of H consecutive channels of the merged heads)(n)
    out = dense(SiLU(x W_G) * y)

D1 and D2 know P positions, where the released code ends. The texts here go on: there D1 and D2 keep their last weights and
go on by γ, the decay that fits D2 best.
"""
import json
import math
import sys
import zlib
from pathlib import Path

import numpy as np

VOCAB, LAYERS, POSITIONS, TOKENS = 40, 2, 20, 28
EPSILON = 1e-5
ROTATED = 0.5
THETA = 10000.0

# name: heads, channels of a head, and whether D1 and D2 are no more what they begin as.
FOLDERS = {
    # Groups lie within heads.
    "authors": (2, 8, False),
    # Groups of 3 channels straddle heads of 8.
    "authors-edited": (3, 8, True),
}


def generator(*names):
    return np.random.RandomState(zlib.crc32("/".join(names).encode()))


def dct(d):
    """The orthonormal DCT-II, row by row."""
    i, j = np.arange(d)[:, None], np.arange(d)[None, :]
    rows = np.sqrt(2.0 / d) * np.cos(np.pi * i * (j + 0.5) / d)
    rows[0] /= np.sqrt(2.0)
    return rows


def gammas(heads):
    return 1 - np.exp(np.linspace(math.log(1 / 32), math.log(1 / 512), heads))


def attention_of(folder, at, heads, d, edited):
    """What the released code puts beside an attention."""
    width, names = heads * d, lambda name: generator(folder, at, name)
    t = names("proj_matrix").standard_normal(d)
    powers = gammas(heads)[:, None] ** np.arange(POSITIONS)[None, :]
    d1, d2 = powers.copy(), 1 / powers
    if edited:
        d1 *= 1 + 0.5 * names("D1").standard_normal(d1.shape)
        d2 *= 1 + 0.5 * names("D2").standard_normal(d2.shape)
        # As training may leave them.
        d1[0, 3], d2[1, 4], d2[0, 7] = 0.0, 0.0, -d2[0, 7]
    return {
        f"{at}.proj_matrix": dct(d) * t[None, :],
        f"{at}.D1": d1[None, :, :, None],
        f"{at}.D2": d2[None, :, :, None],
        f"{at}.W_G": names("W_G").standard_normal((width, width)) / math.sqrt(width),
        f"{at}.group_norm.weight": 1 + 0.3 * names("weight").standard_normal(width),
        f"{at}.group_norm.bias": 0.3 * names("bias").standard_normal(width),
    }


def buffers(at):
    """What the code makes anew, and old versions saved."""
    closed = np.tril(np.ones((POSITIONS, POSITIONS), dtype=bool))[None, None]
    return {f"{at}.bias": closed, f"{at}.masked_bias": np.float32(-1e9)}


def weights_of(folder, heads, d, edited):
    width, inner = heads * d, 2 * heads * d
    made = {}

    def linear(name, rows, columns):
        draw = generator(folder, name)
        made[f"{name}.weight"] = 1.2 * draw.standard_normal((rows, columns)) / math.sqrt(columns)
        made[f"{name}.bias"] = 0.3 * draw.standard_normal(rows)

    def norm(name):
        draw = generator(folder, name)
        made[f"{name}.weight"] = 1 + 0.3 * draw.standard_normal(width)
        made[f"{name}.bias"] = 0.3 * draw.standard_normal(width)

    made["gpt_neox.embed_in.weight"] = generator(folder, "embed_in").standard_normal((VOCAB, width))
    for layer in range(LAYERS):
        at = f"gpt_neox.layers.{layer}"
        norm(f"{at}.input_layernorm")
        norm(f"{at}.post_attention_layernorm")
        linear(f"{at}.attention.query_key_value", 3 * width, width)
        linear(f"{at}.attention.dense", width, width)
        linear(f"{at}.mlp.dense_h_to_4h", inner, width)
        linear(f"{at}.mlp.dense_4h_to_h", width, inner)
        made |= attention_of(folder, f"{at}.attention", heads, d, edited)
    norm("gpt_neox.final_layer_norm")
    made["embed_out.weight"] = generator(folder, "embed_out").standard_normal((VOCAB, width)) / math.sqrt(width)
    made = {name: np.asarray(tensor, dtype=np.float32) for name, tensor in made.items()}
    return made | (buffers("gpt_neox.layers.0.attention") if not edited else {})


class Model:
    """The released code, token against token in f64."""

    def __init__(self, weights, heads, d):
        self.w = {name: tensor.astype(np.float64) for name, tensor in weights.items()}
        self.heads, self.d = heads, d

    def linear(self, name, x):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name, x):
        return normal(x) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def logits(self, ids):
        x = self.w["gpt_neox.embed_in.weight"][ids]
        for layer in range(LAYERS):
            at = f"gpt_neox.layers.{layer}"
            attended = self.attention(f"{at}.attention", self.norm(f"{at}.input_layernorm", x))
            inner = self.linear(f"{at}.mlp.dense_h_to_4h", self.norm(f"{at}.post_attention_layernorm", x))
            x = x + attended + self.linear(f"{at}.mlp.dense_4h_to_h", gelu(inner))
        return self.norm("gpt_neox.final_layer_norm", x) @ self.w["embed_out.weight"].T

    def attention(self, at, x):
        time, heads, d = len(x), self.heads, self.d
        # Query, key and value lie together head by head.
        joined = self.linear(f"{at}.query_key_value", x).reshape(time, heads, 3, d)
        q, k = (rotated(joined[:, :, part]) for part in (0, 1))
        v = joined[:, :, 2]
        f = lambda x: softmax(x @ self.w[f"{at}.proj_matrix"])
        d1, d2 = self.by_position(at, time)
        n = np.zeros((time, heads, d))
        for t in range(time):
            for h in range(heads):
                for j in range(t + 1):
                    n[t, h] += d1[h, t] * d2[h, j] * (f(q[t, h]) @ f(k[j, h])) * v[j, h]
        merged = n.reshape(time, heads * d)
        y = normal(merged.reshape(time, d, heads)).reshape(time, heads * d)
        y = y * self.w[f"{at}.group_norm.weight"] + self.w[f"{at}.group_norm.bias"]
        gate = x @ self.w[f"{at}.W_G"]
        return self.linear(f"{at}.dense", gate / (1 + np.exp(-gate)) * y)

    def by_position(self, at, time):
        """D1 and D2, which go on past their last position by the decay that fits D2 best."""
        d1, d2 = (self.w[f"{at}.{name}"][0, :, :, 0] for name in ("D1", "D2"))
        longer = [np.zeros((self.heads, time)) for _ in (d1, d2)]
        for h in range(self.heads):
            with np.errstate(divide="ignore"):
                log = np.log(np.abs(d2[h]))
            at_all = np.isfinite(log)
            slope = np.polyfit(np.arange(POSITIONS)[at_all], log[at_all], 1)[0]
            for t in range(time):
                past = max(t - POSITIONS + 1, 0)
                longer[0][h, t] = d1[h, min(t, POSITIONS - 1)] * math.exp(min(-slope, 0.0) * past)
                longer[1][h, t] = d2[h, min(t, POSITIONS - 1)] * math.exp(max(slope, 0.0) * past)
        return longer


def normal(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)


def softmax(x):
    power = np.exp(x - x.max(-1, keepdims=True))
    return power / power.sum(-1, keepdims=True)


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def rotated(x):
    """Of `[time, heads, d]`."""
    width = int(x.shape[-1] * ROTATED)
    frequencies = THETA ** (-np.arange(0, width, 2) / width)
    angles = np.tile(np.arange(len(x))[:, None] * frequencies, 2)[:, None]
    turned, kept = x[..., :width], x[..., width:]
    left, right = np.split(turned, 2, axis=-1)
    swapped = np.concatenate((-right, left), -1)
    return np.concatenate((turned * np.cos(angles) + swapped * np.sin(angles), kept), -1)


def config_of(heads, d):
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "attention_bias": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_size": heads * d,
        "intermediate_size": 2 * heads * d,
        "layer_norm_eps": EPSILON,
        "max_position_embeddings": POSITIONS,
        "model_type": "gpt_neox",
        "num_attention_heads": heads,
        "num_hidden_layers": LAYERS,
        "pad_token_id": 0,
        "rotary_emb_base": int(THETA),
        "rotary_pct": ROTATED,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_parallel_residual": True,
        "vocab_size": VOCAB,
    }


def save(path, tensors):
    """A safetensors file."""
    kinds = {"float32": "F32", "int64": "I64", "bool": "BOOL"}
    header, offset, data = {}, 0, []
    for name in sorted(tensors):
        tensor = np.asarray(tensors[name])
        raw = tensor.tobytes()
        place = [offset, offset + len(raw)]
        header[name] = {"dtype": kinds[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": place}
        offset += len(raw)
        data.append(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))


def make(folder, root):
    heads, d, edited = FOLDERS[folder]
    weights = weights_of(folder, heads, d, edited)
    # Keep clear of the special tokens, so that no token means padding.
    ids = generator(folder, "input_ids").randint(3, VOCAB, size=(2, TOKENS)).astype(np.int64)
    model = Model(weights, heads, d)
    logits = np.stack([model.logits(row) for row in ids]).astype(np.float32)
    out = root / folder
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config_of(heads, d), indent=2) + "\n")
    save(out / "model.safetensors", weights)
    save(out / "reference.safetensors", {"input_ids": ids, "attention_mask": np.ones_like(ids), "logits": logits})
    print(f"{out}: {sum(w.size for w in weights.values())} numbers; largest logit {np.abs(logits).max():.2f}")


def main():
    if len(sys.argv) > 2 or "-h" in sys.argv or "--help" in sys.argv:
        sys.exit(__doc__)
    fixtures = Path(__file__).resolve().parents[2] / "fixtures"
    root = Path(sys.argv[1]) if len(sys.argv) == 2 else fixtures
    for folder in FOLDERS:
        make(folder, root)


main()
