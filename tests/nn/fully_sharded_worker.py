"""One of two processes that train sharded layers; see test_fully_sharded.py."""

import copy
import sys

import torch
import torch.distributed as dist
from adaptive_layers import stirred
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from finslerconv.nn import DeformConv2d, GeodesicConv2d, MetricConv2d, ShiftedConv2d, WeightedConv2d

LAYERS = {
    "MetricConv2d": MetricConv2d,
    "GeodesicConv2d": GeodesicConv2d,
    "DeformConv2d": DeformConv2d,
    "ShiftedConv2d": ShiftedConv2d,
    "WeightedConv2d": lambda *args, **kwargs: WeightedConv2d(*args, density=[0.7], **kwargs),
}


def main(store: str, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for name, make in LAYERS.items():
        torch.manual_seed(0)
        plain = stirred(make(4, 6, 3, padding=1, dtype=torch.float64), 0.05)
        sharded = copy.deepcopy(plain)
        fully_shard(sharded, mesh=mesh)
        images = torch.randn(2, 4, 9, 9, dtype=torch.float64)
        plain(images).square().sum().div(2).backward()
        sharded(images[rank : rank + 1]).square().sum().backward()
        for (key, p), q in zip(sharded.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(
                p.grad.full_tensor(), q.grad, rtol=1e-9, atol=1e-9, msg=f"{name}.{key}"
            )
        print(name, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
