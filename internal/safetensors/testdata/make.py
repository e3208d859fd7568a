"""Writes the golden files beside this script with Python's safetensors.

python internal/safetensors/testdata/make.py [OUT]
Made with torch 2.13.0, safetensors 0.8.0, huggingface_hub's sharding; the Go
tests compare byte for byte what Go writes for the same content.
"""
import json
import math
import sys
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "golden"
out.mkdir(parents=True, exist_ok=True)

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.float8_e5m2, torch.float8_e4m3fn, torch.float8_e8m0fnu,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.int16, torch.uint16, torch.float16, torch.bfloat16,
    torch.int32, torch.uint32, torch.float32, torch.complex64, torch.float64, torch.int64, torch.uint64,
]


def pattern(dtype, shape):
    """Bytes 0, 1, 2, ... seen as dtype (bool: 0 and 1)."""
    n = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
    raw = (torch.arange(n) % (2 if dtype == torch.bool else 251)).to(torch.uint8)
    return raw.view(dtype).reshape(shape) if n else torch.empty(shape, dtype=dtype)


# Every dtype, two shapes each, in an order that is not the file's.
tensors = {}
for i, dtype in enumerate(DTYPES):
    name = str(dtype).removeprefix("torch.")
    tensors[f"z.{name}"] = pattern(dtype, (2, 3))
    tensors[f"a.{i}"] = pattern(dtype, (1,))
save_file(tensors, out / "dtypes.safetensors")

# Scalars, no elements, names and metadata that need care in JSON.
odd = {
    "scalar": pattern(torch.float32, ()),
    "empty": pattern(torch.float32, (0, 4)),
    'quote " backslash \\ slash / <&> é 日本 😀 \u2028 \x01\t\n\x7f': pattern(torch.float16, (3,)),
    "": pattern(torch.int64, (1,)),
}
save_file(odd, out / "odd.safetensors", metadata={"format": 'p"t\\\u2028\x02é<'})
save_file({}, out / "none.safetensors", metadata={"format": "pt"})

# Rounding to narrower types, as torch rounds.
g = torch.Generator().manual_seed(7)
src = torch.cat([
    torch.randn(200, generator=g, dtype=torch.float64).float() * 10.0 ** torch.randint(-9, 6, (200,), generator=g).float(),
    torch.tensor([0.0, -0.0, math.inf, -math.inf, 65504.0, 65519.996, 65520.0, 2.0**-14, 2.0**-24, 2.0**-25, 1.5 * 2.0**-25,
                  2.0**-149, 3.4028235e38, 1.00390625, 1.01171875, 1.00048828125, 1.00146484375]),
])
save_file({"f32": src, "f16": src.half(), "bf16": src.bfloat16(), "f64": src.double(),
           "f16.back": src.half().float(), "bf16.back": src.bfloat16().float()}, out / "rounding.safetensors")

# A model in shards.
shards = out / "sharded"
shards.mkdir(exist_ok=True)
state = {f"layer.{i}.weight": pattern(torch.float32, (i + 1, 5)) for i in range(6)}
state["big"] = pattern(torch.bfloat16, (20, 10))
state["norm"] = pattern(torch.float32, (3,))
split = split_torch_state_dict_into_shards(state, max_shard_size=200)
for filename, names in split.filename_to_tensors.items():
    save_file({n: state[n] for n in names}, shards / filename, metadata={"format": "pt"})
index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
(shards / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
(shards / "order.json").write_text(json.dumps(list(state)) + "\n")
