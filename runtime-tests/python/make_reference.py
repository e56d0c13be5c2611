#!/usr/bin/env python3
"""make_reference.py CHECKPOINT TEXT OUT: the logits that transformers gives, f32 with eager attention, for
`dijiang verify BUNDLE --reference OUT`.

Needs torch, transformers, tokenizers and safetensors. OUT is a safetensors file with input_ids and attention_mask
i64 [1, tokens] and logits f32 [1, tokens, vocabulary].
"""
import os, sys


def main(checkpoint, text, out):
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation='eager').eval()
    ids = torch.tensor([Tokenizer.from_file(os.path.join(checkpoint, 'tokenizer.json')).encode(text).ids])
    with torch.no_grad():
        logits = model(ids).logits
    save_file({'input_ids': ids, 'attention_mask': torch.ones_like(ids), 'logits': logits.contiguous()}, out)
    print(f'{ids.shape[1]} tokens; largest logit {logits.abs().max():.2f}')


if len(sys.argv) != 4:
    sys.exit(__doc__)
main(*sys.argv[1:])
