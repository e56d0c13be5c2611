# /// script
# dependencies = ["torch", "transformers"]
# ///
"""How fast PyTorch trains a checkpoint: tokens per second and peak GPU memory of AdamW steps on random
tokens, bf16 autocast and sdpa attention, eager and compiled. One line of JSON each.

  measure_training.py CHECKPOINT [--batch 16] [--context 512] [--steps 12] [--modes eager,compile]
"""
import argparse
import json
import time

import torch
import transformers


def measure(args, mode):
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    config = transformers.AutoConfig.from_pretrained(args.checkpoint)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float().cuda()
    model.config.use_cache = False
    step_model = torch.compile(model) if mode == "compile" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(args.steps):
        tokens = torch.randint(config.vocab_size, (args.batch, args.context), device="cuda")
        torch.cuda.synchronize()
        begun = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = step_model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        seconds.append(time.perf_counter() - begun)
    median = sorted(seconds[args.steps // 2:])[len(seconds[args.steps // 2:]) // 2]
    return {
        "mode": mode,
        "batch": args.batch,
        "context": args.context,
        "tokens_per_second": round(args.batch * args.context / median),
        "ms_per_step": round(1000 * median, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--modes", default="eager,compile")
    args = parser.parse_args()
    for mode in args.modes.split(","):
        print(json.dumps(measure(args, mode)), flush=True)
        torch.cuda.empty_cache()


main()
