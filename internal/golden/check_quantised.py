"""Load a folder that Go quantised with transformers and bitsandbytes, and have them quantise its base themselves.

    check_quantised.py QUANTISED_DIR IDS.safetensors BASE_DIR [--tolerance 1e-4]

IDS.safetensors is that of check_adapter.py. Fails (exit code 1) on a model none of whose linears is bitsandbytes'
own, on logits out of tolerance (not for INT8, where bitsandbytes also rounds what goes into a product), and if
Python's own tensors or its quantization_config are not the same. (transformers 5.23 cannot save a model that it
has loaded in bits, so that Go's files are not saved again.)
"""
import argparse
import json
import pathlib
import tempfile

from check_adapter import difference, forward
import bitsandbytes.nn
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

# A layout of its own for inference on some CPUs, which cannot be saved.
bitsandbytes.nn.modules.has_avx512bf16 = lambda: False


def tensors(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def differences(got, want, who):
    problems = [f"{who} has no tensor {k}" for k in sorted(got.keys() - want.keys())]
    problems += [f"{who} has a tensor {k}" for k in sorted(want.keys() - got.keys())]
    for k in sorted(got.keys() & want.keys()):
        if got[k].dtype != want[k].dtype or got[k].shape != want[k].shape or not torch.equal(got[k], want[k]):
            problems.append(f"tensor {k} is another than that of {who}: {got[k].dtype} {list(got[k].shape)}, {want[k].dtype} {list(want[k].shape)}")
    return problems


def saved(model):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model.save_pretrained(folder)
        return tensors(folder), json.loads((folder / "config.json").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quantised", type=pathlib.Path)
    parser.add_argument("ids")
    parser.add_argument("base")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    args = parser.parse_args()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a sum of many values depends on the number of threads
    own = json.loads((args.quantised / "config.json").read_text())["quantization_config"]
    model = AutoModelForCausalLM.from_pretrained(args.quantised, attn_implementation="eager").eval()
    kind = bitsandbytes.nn.Linear8bitLt if own["load_in_8bit"] else bitsandbytes.nn.Linear4bit
    count = sum(isinstance(m, kind) for m in model.modules())
    problems = [] if count else ["no linear layer is quantised"]
    data = load_file(args.ids)
    wrong, size = difference(forward(model, data).float(), data)
    if not own["load_in_8bit"] and not bool((wrong <= args.tolerance * (1 + size)).all()):
        problems.append(f"logits differ by up to {wrong.max():.3g}, tolerance {args.tolerance:g}")
    options = BitsAndBytesConfig.from_dict({k: v for k, v in own.items() if not k.startswith("_")})
    python, config = saved(AutoModelForCausalLM.from_pretrained(args.base, dtype="auto", quantization_config=options))
    problems += differences(tensors(args.quantised), python, "bitsandbytes")
    if config["quantization_config"] != own:
        problems.append(f"quantization_config {own}, Python's {config['quantization_config']}")
    torch.set_num_threads(threads)
    print(f"{args.quantised}: {count} linears, logits differ by {wrong.max().item():.3g} (|logits| up to {size.max().item():.3g})")
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
