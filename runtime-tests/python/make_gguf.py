#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["gguf==0.19.0", "torch==2.11.0", "safetensors", "numpy", "regex", "sentencepiece==0.2.3"]
# ///
"""Writes fixtures/gguf: GGUF files of the checkpoints beside it, by the package of llama.cpp; blocks of every quantised type
with the numbers that it reads of them; and tokenizers with the ids of some texts, by sentencepiece and by a few lines here.

    python3 runtime-tests/python/make_gguf.py [NAME ...]
    python3 runtime-tests/python/make_gguf.py --check      the files against transformers' own reader (and accelerate)

Names of tensors come from the package's own tables. What llama.cpp's converter does to a tensor is done here with torch, as
its convert_hf_to_gguf.py (2026-11) does it.
"""

import collections
import io
import json
import sys
from pathlib import Path

import gguf
import numpy as np
import regex
import sentencepiece
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file
from safetensors.torch import load_file

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
OUT = FIXTURES / "gguf"
ARCH = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}

# File, checkpoint, architecture, what its config says else.
MODELS = [
    ("llama", "llama", "llama", {}),
    ("llama-rope3", "llama-rope3", "llama", {}),
    ("llama-linear", "llama-linear", "llama", {}),
    ("mistral", "mistral", "llama", {}),
    ("granite", "granite", "granite", {}),
    ("granite-q8_0", "granite", "granite", {}),
    ("smollm3", "smollm3", "smollm3", {}),
    ("qwen2", "qwen2", "qwen2", {}),
    ("qwen3", "qwen3", "qwen3", {}),
    ("olmo2", "olmo2", "olmo2", {}),
    ("phi", "phi", "phi2", {}),
    ("phi3", "phi3", "phi3", {}),
    ("phi3-short", "phi3-short", "phi3", {}),
    ("starcoder2", "starcoder2", "starcoder2", {}),
    ("stablelm", "stablelm", "stablelm", {}),
    ("stablelm-parallel", "stablelm-parallel", "stablelm", {}),
    ("cohere", "cohere", "command-r", {}),
    ("gemma", "gemma", "gemma", {}),
    ("gemma2", "gemma2", "gemma2", {}),
    ("gemma3", "gemma3", "gemma3", {}),
    ("gpt2", "gpt2", "gpt2", {}),
    ("neox", "neox", "gptneox", {}),
    ("neox-serial", "neox-serial", "gptneox", {}),
    ("falcon", "falcon", "falcon", {}),
    ("falcon-mqa", "falcon-mqa", "falcon", {}),
]


def first(config, *keys, default=None):
    return next((config[key] for key in keys if config.get(key) is not None), default)


def tensors(folder):
    return {k: v for file in sorted(folder.glob("model*.safetensors")) for k, v in load_file(file).items()}


def permuted(x, heads):
    return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def parts_together(x, heads, kv_heads, head_dim):
    """Queries, keys and values, each of all heads."""
    groups = x.reshape(kv_heads, heads // kv_heads + 2, head_dim, *x.shape[1:])
    parts = groups[:, :-2], groups[:, -2:-1], groups[:, -1:]
    return torch.cat([part.reshape(-1, *x.shape[1:]) for part in parts])


def changed(arch, name, x, config):
    heads = first(config, "num_attention_heads", "n_head")
    kv_heads = first(config, "num_key_value_heads", "num_kv_heads", default=heads)
    head_dim = config.get("head_dim") or first(config, "hidden_size", "n_embd") // heads
    if arch == "falcon" and not config["new_decoder_architecture"] and config["multi_query"]:
        kv_heads = 1
    if arch in ("llama", "granite", "smollm3"):
        if ".q_proj." in name:
            return permuted(x, heads)
        if ".k_proj." in name:
            return permuted(x, kv_heads)
    if arch.startswith("gemma") and name.endswith("norm.weight"):
        return x.float() + 1
    if arch == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return x.T
    if arch == "gptneox" and "query_key_value" in name:
        return parts_together(x, heads, heads, head_dim)
    if arch == "falcon" and "query_key_value" in name:
        return parts_together(x, heads, kv_heads, head_dim)
    return x


def stacked(found):
    """The norms of the heads of StableLM, one under the other."""
    out, rows = {}, {}
    for name, x in found.items():
        module, norms, head = name.removesuffix(".weight").partition(".norms.")
        if norms:
            rows.setdefault(f"{module}.weight", {})[int(head)] = x
        else:
            out[name] = x
    return out | {name: torch.stack([of[i] for i in range(len(of))]) for name, of in rows.items()}


def llama3(config, rope):
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    base, factor, original = config["rope_theta"], rope["factor"], rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    freqs = 1.0 / (base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    out = []
    for freq in freqs:
        wave = 2 * np.pi / freq
        if wave < original / high:
            out.append(1.0)
        elif wave > original / low:
            out.append(factor)
        else:
            smooth = (original / wave - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(out, dtype=torch.float32)


def metadata(writer, arch, config):
    hidden, heads = first(config, "hidden_size", "n_embd"), first(config, "num_attention_heads", "n_head")
    writer.add_block_count(first(config, "num_hidden_layers", "n_layer"))
    writer.add_context_length(first(config, "max_position_embeddings", "n_positions"))
    writer.add_embedding_length(hidden)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_feed_forward_length(first(config, "intermediate_size", "n_inner", "ffn_hidden_size", default=4 * hidden))
    writer.add_head_count(heads)
    kv_heads = first(config, "num_key_value_heads", "num_kv_heads")
    if arch == "falcon" and not config["new_decoder_architecture"]:
        kv_heads = 1
    if kv_heads is not None:
        writer.add_head_count_kv(kv_heads)
    if (epsilon := first(config, "rms_norm_eps")) is not None:
        writer.add_layer_norm_rms_eps(epsilon)
    if (epsilon := first(config, "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")) is not None:
        writer.add_layer_norm_eps(epsilon)
    if (head_dim := config.get("head_dim")) is not None:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    rope(writer, arch, config, head_dim or hidden // heads)
    for token in ("bos", "eos", "pad"):
        if (token_id := config.get(f"{token}_token_id")) is not None:
            getattr(writer, f"add_{token}_token_id")(token_id)
    if arch in ("gemma2", "gemma3", "phi3"):
        writer.add_sliding_window(config.get("sliding_window") or 0)
    if arch == "gemma3":
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if arch in ("gptneox", "stablelm"):
        writer.add_parallel_residual(config["use_parallel_residual"])
    if arch == "granite":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    if arch == "command-r":
        writer.add_logit_scale(config["logit_scale"])


def rope(writer, arch, config, head_dim):
    if arch == "gpt2":
        return
    settings = config.get("rope_parameters") or {**config, **(config.get("rope_scaling") or {})}
    near = settings.get("sliding_attention")
    settings = settings.get("full_attention", settings)
    share = first(settings, "partial_rotary_factor", "rotary_pct", default=first(config, "rotary_pct", default=1.0))
    if arch in ("llama", "granite", "smollm3", "phi2", "phi3", "stablelm", "gptneox"):
        writer.add_rope_dimension_count(int(share * head_dim))
    if arch not in ("stablelm", "falcon") and (base := first(settings, "rope_theta", "rotary_emb_base")) is not None:
        writer.add_rope_freq_base(base)
    if near:
        writer.add_rope_freq_base_swa(near["rope_theta"])
    kind = settings.get("rope_type")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(settings["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(settings["factor"])
        writer.add_rope_scaling_orig_ctx_len(settings["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(settings["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(settings["beta_slow"])
    elif kind == "longrope":
        original = settings["original_max_position_embeddings"]
        scale = config["max_position_embeddings"] / original
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(1.0 if scale <= 1 else float(np.sqrt(1 + np.log(scale) / np.log(original))))
        for length in ("long", "short"):
            factors = np.array(settings[f"{length}_factor"], dtype=np.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", factors)
    elif kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3(config, settings).numpy())


def quantised(x, kind):
    try:
        return gguf.quants.quantize(x.float().numpy(), kind), kind
    except gguf.QuantError:
        return gguf.quants.quantize(x.float().numpy(), Type.F16), Type.F16


def write(name, checkpoint, arch, edits):
    folder = FIXTURES / checkpoint
    config = json.loads((folder / "config.json").read_text()) | edits
    found = stacked(tensors(folder))
    layers = first(config, "num_hidden_layers", "n_layer")
    names = gguf.get_tensor_name_map(ARCH[arch], layers)
    kinds = {torch.float32: Type.F32, torch.float16: Type.F16, torch.bfloat16: Type.BF16}
    writer = gguf.GGUFWriter(OUT / f"{name}.gguf", arch)
    metadata(writer, arch, config)
    read = {}
    for own, x in found.items():
        if config.get("tie_word_embeddings") and own == "lm_head.weight":
            continue
        new = names.get_name(own, try_suffixes=(".weight", ".bias"))
        assert new, own
        kind = Type.Q8_0 if name.endswith("q8_0") else kinds[x.dtype]
        y = changed(arch, own, x, config)
        # As the converter does: vectors, norms and the table of positions are kept in f32.
        if y.ndim == 1 or new.endswith("_norm.weight") or "position_embd" in new:
            kind = Type.F32
        data, kind = quantised(y.contiguous(), kind)
        writer.add_tensor(new, data, raw_dtype=kind)
        if name.endswith("q8_0"):
            stored = torch.from_numpy(gguf.quants.dequantize(data, kind).reshape(y.shape))
            read[own] = undone(own, stored, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if read:
        save_file({own: x.contiguous().numpy() for own, x in read.items()}, OUT / f"{name}.safetensors")
    print(name, (OUT / f"{name}.gguf").stat().st_size)


def undone(name, x, config):
    """As transformers' own reader turns the rows of Llama's queries and keys back."""
    heads = {".q_proj.": config["num_attention_heads"], ".k_proj.": config["num_key_value_heads"]}
    for part, count in heads.items():
        if part in name:
            return x.reshape(count, x.shape[0] // count // 2, 2, *x.shape[1:]).swapaxes(2, 1).reshape(x.shape)
    return x


def blocks():
    """Three blocks of each type, of random bytes but for scales that are no infinities, and what they stand for."""
    random = np.random.default_rng(7)
    out = {}
    scales = {
        Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0], Type.Q2_K: [80, 82],
        Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
    }
    for kind, places in scales.items():
        _, size = gguf.GGML_QUANT_SIZES[kind]
        raw = random.integers(0, 256, (3, size), dtype=np.uint8)
        for place in places:
            numbers = random.normal(0, 0.1, (3, 1)).astype(np.float16)
            raw[:, place:place + 2] = numbers.view(np.uint8)
        out[f"{kind.name}.raw"] = raw
        out[f"{kind.name}.numbers"] = gguf.quants.dequantize(raw, kind).astype(np.float32).reshape(3, -1)
    save_file(out, OUT / "blocks.safetensors")


TEXTS = [
    "The ferry left the harbour a little after six.",
    "  two  spaces   three, and a tab\there\n\nnew line \r\n end  ",
    "I'll don't WE'RE it's 12345 1,000.50 x86",
    "naïve Ωmega 世界 🙂 ß ¹² \u0301",
    "<s>begin</s> <|im_start|>user\nhi<|im_end|>",
    "",
    " ",
    "a",
]

# How llama.cpp cuts a text before merges, by the name of the rule.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
CASES = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
PRES = {
    "gpt-2": [GPT2],
    "llama-bpe": [CASES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
    "qwen2": [CASES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
    "smollm": [r"\p{N}", GPT2],
}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def letters():
    """A printable letter for each byte, as GPT-2 has it."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


LETTERS = letters()


def cut(text, patterns):
    pieces = [text]
    for pattern in patterns:
        out = []
        for piece in pieces:
            at = 0
            for match in regex.finditer(pattern, piece):
                out += [piece[at:match.start()], match.group()]
                at = match.end()
            out.append(piece[at:])
        pieces = [piece for piece in out if piece]
    return pieces


def merged(piece, ranks):
    while len(piece) > 1:
        rank, at = min((ranks.get((a, b), len(ranks)), i) for i, (a, b) in enumerate(zip(piece, piece[1:])))
        if rank == len(ranks):
            return piece
        piece = [*piece[:at], piece[at] + piece[at + 1], *piece[at + 2:]]
    return piece


def trained(patterns, count):
    """Merges of a text, the commonest pair first."""
    text = (FIXTURES.parent / "docs" / "tutorial.md").read_text() * 2 + " ".join(TEXTS)
    words = collections.Counter(tuple(LETTERS[b] for b in piece.encode()) for piece in cut(text, patterns))
    merges = []
    while len(merges) < count:
        pairs = collections.Counter()
        for word, times in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += times
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = collections.Counter({tuple(merged(list(word), {best: 0})): n for word, n in words.items()})
    return merges


def in_parts(text):
    """Special tokens and what lies between."""
    return [part for part in regex.split("(" + "|".join(map(regex.escape, SPECIAL)) + ")", text) if part]


def byte_level(pre):
    patterns = PRES[pre]
    merges = trained(patterns, 120)
    tokens = [*LETTERS.values(), *("".join(merge) for merge in merges), *SPECIAL]
    ids = {token: i for i, token in enumerate(tokens)}
    ranks = {merge: rank for rank, merge in enumerate(merges)}

    def encode(text):
        out = [ids["<s>"]] if pre == "llama-bpe" else []
        for part in in_parts(text):
            if part in SPECIAL:
                out.append(ids[part])
                continue
            for piece in cut(part, patterns):
                letters = [LETTERS[byte] for byte in piece.encode()]
                whole = "".join(letters)
                # Llama 3 takes a piece that is a token as it is.
                known = pre == "llama-bpe" and whole in ids
                out += [ids[whole]] if known else [ids[token] for token in merged(letters, ranks)]
        return out

    with_tokenizer(pre, len(tokens), lambda writer: (
        writer.add_tokenizer_model("gpt2"),
        writer.add_tokenizer_pre(pre),
        writer.add_token_list(tokens),
        writer.add_token_types([1] * (len(tokens) - len(SPECIAL)) + [3] * len(SPECIAL)),
        writer.add_token_merges([" ".join(merge) for merge in merges]),
        writer.add_bos_token_id(ids["<s>"]),
        writer.add_eos_token_id(ids["</s>"]),
        writer.add_eot_token_id(ids["<|im_end|>"]),
        writer.add_chat_template("{{ messages[0].content }}"),
    ), [[text, encode(text)] for text in TEXTS])


def sentence_piece():
    model = io.BytesIO()
    text = (FIXTURES.parent / "docs" / "tutorial.md").read_text()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()), model_writer=model, vocab_size=600, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=0.99,
        minloglevel=2, num_threads=1,
    )
    own = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    count = own.vocab_size()
    kinds = [2 if own.IsUnknown(i) else 3 if own.IsControl(i) else 6 if own.IsByte(i) else 1 for i in range(count)]
    # What stands for a token of its own in a text is text to sentencepiece.
    texts = [text for text in TEXTS if not any(token in text for token in SPECIAL)]
    with_tokenizer("sentencepiece", count, lambda writer: (
        writer.add_tokenizer_model("llama"),
        writer.add_tokenizer_pre("default"),
        writer.add_token_list([own.IdToPiece(i) for i in range(count)]),
        writer.add_token_scores([own.GetScore(i) for i in range(count)]),
        writer.add_token_types(kinds),
        writer.add_bos_token_id(own.bos_id()),
        writer.add_eos_token_id(own.eos_id()),
    ), [[text, [own.bos_id(), *own.Encode(text)]] for text in texts])


def with_tokenizer(name, count, add, ids):
    """A model of one narrow layer with a tokenizer, and what that makes of texts."""
    writer = gguf.GGUFWriter(OUT / f"tokenizer-{name}.gguf", "llama")
    config = {
        "hidden_size": 4, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 4, "vocab_size": count,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    }
    metadata(writer, "llama", config)
    add(writer)
    random = np.random.default_rng(3)
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    shapes = {"token_embd": (count, 4), "output_norm": (4,), "blk.0.attn_norm": (4,), "blk.0.ffn_norm": (4,)}
    for module, shape in (shapes | {f"blk.0.{name}": (4, 4) for name in names}).items():
        writer.add_tensor(f"{module}.weight", random.normal(0, 1, shape).astype(np.float32 if len(shape) == 1 else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (OUT / f"tokenizer-{name}.json").write_text(json.dumps(ids, ensure_ascii=False, indent=0) + "\n")


# What transformers reads of GGUF; of Falcon it knows 7B alone, and biases are none of its keys there.
READ = (
    "llama", "llama-linear", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "starcoder2", "stablelm", "phi3",
)


def check():
    """The weights that transformers reads of the files are those of the checkpoints."""
    from transformers import AutoModelForCausalLM

    for name, checkpoint, *_ in MODELS:
        if name in READ:
            found, expected = (
                AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more).state_dict()
                for folder, more in ((OUT, {"gguf_file": f"{name}.gguf"}), (FIXTURES / checkpoint, {}))
            )
            assert found.keys() == expected.keys(), name
            # Gemma's norms are stored with one more.
            far = [own for own, x in expected.items() if (found[own] - x).abs().max() > 6e-8]
            assert not far, (name, far)
            print(name, len(expected), "tensors, all the same")


def main():
    OUT.mkdir(exist_ok=True)
    wanted = sys.argv[1:]
    if wanted == ["--check"]:
        return check()
    for name, *rest in MODELS:
        if not wanted or name in wanted:
            write(name, *rest)
    if not wanted or "blocks" in wanted:
        blocks()
    if not wanted or "tokenizers" in wanted:
        sentence_piece()
        for pre in PRES:
            byte_level(pre)


if __name__ == "__main__":
    main()
