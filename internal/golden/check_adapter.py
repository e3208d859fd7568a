"""Load an adapter that Go wrote with the real peft and compare the logits.

    check_adapter.py MODEL_DIR ADAPTER_DIR IDS.safetensors [--tolerance 1e-4] [--fresh]

IDS.safetensors holds what Go computed: input_ids [batch, length] and logits [batch, length, vocabulary]; also,
if wanted, attention_mask and position_ids [batch, length] (integers). Logits count where attention_mask is 1.

Fails (exit code 1) on a missing or unexpected tensor, a wrong shape, a dtype other than F32, a format other than
{"format": "pt"}, a warning from peft, logits that differ by more than the tolerance (absolute, plus as much
relative), or an adapter that changes nothing (unless --fresh: B is still zero).
"""
import argparse
import json
import pathlib
import warnings

from common import load
import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file


def check_file(base, folder):
    """The adapter's file must hold exactly the tensors that peft would write for this configuration."""
    config = PeftConfig.from_pretrained(folder)
    model = get_peft_model(base, config)
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    problems = []
    with safe_open(folder / "adapter_model.safetensors", "pt") as f:
        if f.metadata() != {"format": "pt"}:
            problems.append(f"metadata {f.metadata()}, wanted {{'format': 'pt'}}")
        found = {k: f.get_tensor(k) for k in f.keys()}
    problems += [f"missing tensor {k}" for k in sorted(wanted.keys() - found.keys())]
    problems += [f"unexpected tensor {k}" for k in sorted(found.keys() - wanted.keys())]
    for k in sorted(wanted.keys() & found.keys()):
        if found[k].dtype != torch.float32:
            problems.append(f"{k}: {found[k].dtype}, wanted float32")
        if found[k].shape != wanted[k].shape:
            problems.append(f"{k}: shape {list(found[k].shape)}, wanted {list(wanted[k].shape)}")
    if not config.is_prompt_learning:
        model.unload()
    return problems


def forward(model, data):
    options = {k: data[k].long() for k in ("attention_mask", "position_ids") if k in data}
    ids = data["input_ids"].long()
    if getattr(getattr(model, "active_peft_config", None), "peft_type", None) == "MULTITASK_PROMPT_TUNING":
        options["task_ids"] = torch.zeros(len(ids), dtype=torch.long)
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **options).logits[:, -ids.shape[1]:]  # those of virtual tokens come first


def encoder_forward(args, data):
    """The logits with the prompt encoder that Go saved in place of what it makes; None without one."""
    path = args.adapter / "prompt_encoder.safetensors"
    if not path.exists():
        return None
    config = PeftConfig.from_pretrained(args.adapter)
    config.inference_mode = False
    model = get_peft_model(load(args.model), config).eval()
    model.prompt_encoder["default"].load_state_dict(load_file(path))
    return forward(model, data)


def difference(wanted, data):
    """The greatest difference, and whether all are within tolerance, where the mask is 1."""
    got = data["logits"].float()
    if got.shape != wanted.shape:
        raise SystemExit(f"logits: shape {list(got.shape)}, Python has {list(wanted.shape)}")
    keep = data.get("attention_mask", torch.ones(got.shape[:2])).bool()
    return (got[keep] - wanted[keep]).abs(), wanted[keep].abs()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("adapter", type=pathlib.Path)
    parser.add_argument("ids")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--fresh", action="store_true", help="the adapter may change nothing")
    args = parser.parse_args()
    data = load_file(args.ids)
    base = load(args.model)
    plain = forward(base, data)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        problems = check_file(base, args.adapter)
        if problems:
            raise SystemExit("\n".join(problems))
        model = PeftModel.from_pretrained(load(args.model), args.adapter).eval()
    config = json.loads((args.adapter / "adapter_config.json").read_text())
    noise = ["is_gradient_checkpointing", "tie_word_embeddings", "was renamed from", "Unsupported layer type"]  # the last: of norms
    if config["peft_type"] == "ADALORA":
        noise += ["rank_pattern keys did not match", "zero-sized lora_A"]  # said of peft's own files too
    if config.get("lora_bias"):
        noise += ["LoRA tensor(s) have invalid shape"]  # said of any lora_B.bias
    if config["peft_type"] == "BOFT":
        noise += ["Failed to load the CUDA extension", "Setting boft_n_butterfly_factor to 1"]
    problems = [f"warning: {w.message}" for w in seen if not any(n in str(w.message) for n in noise)]
    adapted = forward(model, data)
    moved = (adapted - plain).abs().max().item()
    wrong, size = difference(adapted, data)
    if moved == 0 and not args.fresh:
        problems.append("the adapter changes nothing (pass --fresh if B is still zero)")
    encoded = encoder_forward(args, data)
    if encoded is not None and not torch.allclose(encoded, adapted, rtol=args.tolerance, atol=args.tolerance):
        problems.append("the prompt encoder gives other logits")
    if not bool((wrong <= args.tolerance * (1 + size)).all()):  # false for NaN too
        problems.append(f"logits differ by up to {wrong.max():.3g}, tolerance {args.tolerance:g}")
    print(f"{args.adapter}: {config['peft_type']} r {config.get('r')}, max difference {wrong.max().item():.3g} (the adapter moves logits by {moved:.3g}, |logits| up to {size.max().item():.3g})")
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
