#!/usr/bin/env python3
"""Losses and gradients of a bundle by PyTorch, for comparison with the graphs' own.

    torch_gradients.py BUNDLE TOKENS.npy OUT.safetensors [--labels LABELS.npy] [--mask MASK.npy] [--dtype f64]

TOKENS is i64 [batch, sequence]. OUT gets `loss`, and under its name in model.safetensors the gradient of every weight,
fixed ones too. The loss is the mean cross-entropy of the next tokens; labels of -100 are left out.

    torch_gradients.py BUNDLE TOKENS.npy OUT.json --adamw STEPS [--lr X] [--new-lr-factor X] [--dtype f64]

takes that many steps of AdamW, where TOKENS may also be [steps, batch, sequence], which are taken in turn. OUT gets
`losses` (before each step, and after the last) and `gradient_norms` (before clipping).

The bundle must have been through `dijiang export-torch`. Needs torch, transformers, safetensors and numpy.
"""

import argparse
import json

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

DTYPES = {"f32": torch.float32, "f64": torch.float64}


def load(bundle, dtype=torch.float32):
    model = AutoModelForCausalLM.from_pretrained(bundle, trust_remote_code=True, dtype=torch.float32)
    # From f32, so that f64 has the numbers that the graphs have.
    return model.to(dtype).train()


def weights(model):
    """Every tensor of model.safetensors by its name, fixed ones too."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def loss_and_gradients(model, tokens, labels=None, mask=None):
    """The loss, and the gradient of every weight."""
    named = weights(model)
    for tensor in named.values():
        tensor.requires_grad_(True)
    loss = model(tokens, attention_mask=mask, labels=tokens if labels is None else labels).loss
    found = torch.autograd.grad(loss, list(named.values()))
    return loss.detach(), dict(zip(named, found))


def adamw(model, lr, new_lr_factor=1.0):
    """AdamW as `dijiang` trains: the conversion's own parameters and vectors do not decay."""
    groups = {}
    for name, parameter in model.named_parameters():
        is_new = ".dijiang." in name
        decay = 0.0 if is_new or parameter.ndim < 2 else 0.1
        groups.setdefault((lr * new_lr_factor if is_new else lr, decay), []).append(parameter)
    groups = [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)


def train(model, batches, steps, lr, new_lr_factor=1.0):
    """Losses before each step and after the last, and the gradients' norms before they were clipped to 1."""
    optimizer, losses, norms = adamw(model, lr, new_lr_factor), [], []
    for step in range(steps):
        tokens = batches[step % len(batches)]
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        tokens = batches[steps % len(batches)]
        losses.append(float(model(tokens, labels=tokens).loss))
    return losses, norms


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("tokens")
    parser.add_argument("out")
    parser.add_argument("--labels")
    parser.add_argument("--mask")
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--adamw", type=int, metavar="STEPS")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--new-lr-factor", type=float, default=1.0)
    return parser.parse_args()


def main(args):
    read = lambda path: None if path is None else torch.from_numpy(np.load(path)).long()
    model, tokens = load(args.bundle, DTYPES[args.dtype]), read(args.tokens)
    if args.adamw is not None:
        batches = tokens if tokens.ndim == 3 else tokens[None]
        losses, norms = train(model, batches, args.adamw, args.lr, args.new_lr_factor)
        with open(args.out, "w") as out:
            json.dump({"losses": losses, "gradient_norms": norms}, out)
        return
    loss, gradients = loss_and_gradients(model, tokens, read(args.labels), read(args.mask))
    save_file({"loss": loss, **{name: g.contiguous() for name, g in gradients.items()}}, args.out)


if __name__ == "__main__":
    main(arguments())
