"""LoRA on convolutions, made by peft on small networks: see conv_test.go in lora.

    methods_conv.py OUT_DIR     writes OUT_DIR/convolutions/CASE/

Each folder has the adapter as peft saves it, info.json (the convolution), and golden.safetensors: weight and bias of
the convolution, x, y with the adapter, loss = sum(y * probe), grad.KEY of each trained tensor, and the merged weight
and bias where peft merges.
"""
import pathlib
import sys
import warnings

from adapters import save
from common import fresh, rng, write_json, write_tensors
from methods import keys, randomise
import torch
from peft import LoraConfig, get_peft_model

LAYERS = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}
SIZES = {1: (9,), 2: (7, 6), 3: (5, 4, 6)}
# Case: dimensions, then what the layer and the adapter have besides.
CASES = {
    "conv1d": (1, dict(kernel_size=3, padding=1), {}),
    "conv1d_grouped": (1, dict(kernel_size=3, groups=2), dict(r=4)),
    "conv2d": (2, dict(kernel_size=(3, 2), stride=(2, 1), padding=(1, 0)), {}),
    "conv2d_pointwise": (2, dict(kernel_size=1, stride=2), dict(use_rslora=True)),
    "conv2d_grouped": (2, dict(kernel_size=3, padding=1, groups=4), dict(r=4)),
    "conv2d_dora": (2, dict(kernel_size=3, padding=1), dict(use_dora=True)),
    "conv2d_bias": (2, dict(kernel_size=2), dict(lora_bias=True)),
    "conv3d": (3, dict(kernel_size=3, padding=1, stride=2), {}),
    "conv3d_dora": (3, dict(kernel_size=(2, 1, 3), bias=False), dict(use_dora=True)),
}


def drawn(key, *shape):
    return torch.from_numpy(rng("convolution", *key).standard_normal(shape)).float()


def make(root, case):
    dims, options, config = CASES[case]
    folder = fresh(root / "convolutions" / case)
    net = torch.nn.Sequential()
    net.add_module("conv", LAYERS[dims](4, 8, **options))
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(0.3 * drawn((case, name), *p.shape))
    out = {name.removeprefix("conv."): p.detach().clone() for name, p in net.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # groups > 1 cannot be merged
        model = get_peft_model(net, LoraConfig(**(dict(r=2, lora_alpha=6, target_modules=["conv"]) | config))).eval()
    model.peft_config["default"].base_model_name_or_path = case
    randomise(model, case, ("lora_A",), 0.1)
    save(model, folder)
    x = drawn((case, "x"), 2, 4, *SIZES[dims])
    y = model(x)
    probe = drawn((case, "probe"), *y.shape)
    loss = (y * probe).sum()
    loss.backward()
    named = keys(model)
    out |= dict(x=x, y=y, probe=probe) | {"grad." + named[n]: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    if options.get("groups", 1) == 1:
        merged = model.merge_and_unload().conv
        out["merged.weight"] = merged.weight
        if merged.bias is not None:
            out["merged.bias"] = merged.bias
    kernel = out["weight"].shape[2:]
    pad, stride = options.get("padding", 0), options.get("stride", 1)
    write_json(folder / "info.json", dict(
        kernel=list(kernel), groups=options.get("groups", 1), bias=options.get("bias", True),
        padding=list(pad) if isinstance(pad, tuple) else [pad] * dims, stride=list(stride) if isinstance(stride, tuple) else [stride] * dims))
    write_tensors(folder / "golden.safetensors", out)
    print(f"{case:24} y {tuple(y.shape)}", flush=True)


def main(root):
    for case in CASES:
        make(root, case)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
