"""Load adapters that Go wrote in AdapterHub's format with its own package and compare the logits.

    check_adapterhub.py FIXTURES DIR     (PYTHONPATH as for bottleneck.py)

DIR/CASE/ is an adapter, DIR/CASE.json {"model": a folder of FIXTURES} and DIR/CASE.safetensors what Go computed: ids
and logits, and mask for a classifier. Fails (exit code 1) on a tensor that is missing or unexpected, a configuration
with other keys than the package writes, or logits that differ by more than 1e-4 (absolute, plus as much relative).
"""
import json
import pathlib
import sys

from bottleneck import load
import torch
from adapters import BnConfig
from safetensors.torch import load_file


def check(root, folder):
    model = load(root, json.loads(folder.with_suffix(".json").read_text())["model"])
    data = load_file(folder.with_suffix(".safetensors"))
    info = {}
    name = model.load_adapter(str(folder), use_safetensors=True, loading_info=info)
    problems = [f"{what} {keys}" for what, keys in info.items() if keys]
    config = json.loads((folder / "adapter_config.json").read_text())
    if name != config["name"] or set(config["config"]) != set(BnConfig.__dataclass_fields__):
        problems.append(f"configuration {config}")
    model.set_active_adapters(name)
    options = {"attention_mask": data["mask"].long()} if "mask" in data else {}
    with torch.no_grad():
        logits = model(input_ids=data["ids"].long(), **options).logits
        model.set_active_adapters(None)
        plain = model(input_ids=data["ids"].long(), **options).logits
    if not torch.allclose(logits, data["logits"], rtol=1e-4, atol=1e-4):
        problems.append(f"logits differ by {(logits - data['logits']).abs().max():.2e}")
    if torch.allclose(logits, plain, rtol=1e-3, atol=1e-3):
        problems.append("the adapter changes nothing")
    for problem in problems:
        print(f"{folder.name}: {problem}")
    return not problems


def main(root, where):
    folders = sorted(p for p in pathlib.Path(where).iterdir() if p.is_dir())
    good = [check(pathlib.Path(root), folder) for folder in folders]
    print(f"{sum(good)} of {len(good)} adapters are read as they were written")
    raise SystemExit(0 if good and all(good) else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
