"""The kernels that a GPU runs for a call, by PyTorch's profiler. For the scripts beside it."""

import torch
from torch.profiler import ProfilerActivity, profile


def kernels(call, warm_up, runs):
    """The profiler's events of all runs that took time on the device; `device_time` is in microseconds."""
    for _ in range(warm_up):
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(runs):
            call()
        torch.cuda.synchronize()
    return [event for event in recorded.events() if event.device_time > 0]
