"""Train metric convolutions on one process or many, replicated (DDP) or sharded (FSDP2).

``torchrun --nproc-per-node 2 examples/many_processes.py ddp`` runs two processes, on GPUs if there
are any; without torchrun it is one.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from finslerconv.nn import MetricConv2d, metric_penalty

BATCH, STEPS = 16, 10  # the batch of all processes together


def main(strategy: str) -> None:
    """Train a small network by a strategy, ``"one"``, ``"ddp"`` or ``"fsdp2"``, and save it."""
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    rank, processes = 0, 1
    if "RANK" in os.environ:  # of torchrun
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        rank, processes = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(0)  # the same parameters on all processes
    net = nn.Sequential(
        MetricConv2d(3, 8, 5, padding=2), nn.ReLU(), MetricConv2d(8, 3, 5, padding=2)
    ).to(device)
    model = net
    if strategy == "ddp":
        model = DistributedDataParallel(net)
    elif strategy == "fsdp2":
        for layer in net:
            fully_shard(layer)
        fully_shard(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    data = torch.Generator().manual_seed(0)  # every process draws the batch and takes its share
    for step in range(STEPS):
        clean = torch.rand(BATCH, 3, 16, 16, generator=data)
        noisy = clean + 0.1 * torch.randn(clean.shape, generator=data)
        mine = slice(rank * BATCH // processes, (rank + 1) * BATCH // processes)
        error = (model(noisy[mine].to(device)) - clean[mine].to(device)).square().mean()
        penalty = metric_penalty(net)
        if isinstance(penalty, DTensor):  # each process had a part of the parameters
            penalty = penalty.full_tensor()
        optimizer.zero_grad()
        (error + penalty).backward()
        optimizer.step()
        mean = error.detach().clone()
        if processes > 1:
            dist.all_reduce(mean)
        if rank == 0:
            print(f"step {step}: {float(mean) / processes:.7f}")

    # All processes gather the parameters, the first one saves them.
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    if rank == 0:
        torch.save(state, "trained.pt")
    if processes > 1:
        dist.barrier()  # none leaves while another still needs it
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "one")
