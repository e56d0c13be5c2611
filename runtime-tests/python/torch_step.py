"""torch_step.py BUNDLE TOKENS.npy OUT.safetensors ddp|fsdp|alone: one AdamW step in f64, with the batch cut among the
processes of `torchrun`. OUT gets every weight after it. Run by test_torch.py.
"""

import sys

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import torch_gradients


def wrapped(model, how):
    if how == "ddp":
        return DistributedDataParallel(model)
    if how == "fsdp":
        for layer in model.layers:
            fully_shard(layer)
        fully_shard(model)
    return model


def main(bundle, tokens, out, how):
    tokens = torch.from_numpy(np.load(tokens))
    inner = torch_gradients.load(bundle, torch.float64)
    rank = 0
    if how != "alone":
        dist.init_process_group("gloo")
        rank = dist.get_rank()
        tokens = tokens.chunk(dist.get_world_size())[rank]
    model = wrapped(inner, how)
    optimizer = torch_gradients.adamw(inner, lr=1e-2)
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    # On every process: it gathers what is cut.
    state = get_model_state_dict(inner, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, out)
    if how != "alone":
        # None leaves while another still speaks to it.
        dist.barrier()
        dist.destroy_process_group()


if len(sys.argv) != 5:
    sys.exit(__doc__)
main(*sys.argv[1:])
