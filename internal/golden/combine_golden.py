"""Weighted combinations of LoRA adapters made by peft: what the result adds to each weight.

    combine_golden.py OUT_DIR     reads OUT_DIR/families, writes OUT_DIR/combine/
"""
import pathlib
import sys
import warnings

from adapters import attach, save
from common import fresh, load, write_json, write_tensors
import torch
from peft.tuners.lora import LoraLayer

FAMILY = "llama"
ADAPTERS = {
    "a": dict(r=4, lora_alpha=8, target_modules=["layers.0.self_attn.q_proj", "layers.1.self_attn.v_proj"]),
    "b": dict(r=4, lora_alpha=2, target_modules=["layers.0.self_attn.q_proj", "layers.1.self_attn.v_proj"]),
    # Another rank, and another set of targets.
    "c": dict(r=2, lora_alpha=6, target_modules=["layers.0.self_attn.q_proj", "embed_tokens"]),
}
CASES = {
    "cat": dict(adapters=["a", "b", "c"], weights=[0.5, -1.5, 2.0], combination_type="cat"),
    "linear": dict(adapters=["a", "b"], weights=[0.7, 1.1], combination_type="linear"),
    "linear_negative": dict(adapters=["a", "b"], weights=[0.7, -1.0], combination_type="linear"),
    "svd": dict(adapters=["a", "b", "c"], weights=[0.5, -1.5, 2.0], combination_type="svd"),
    "svd_rank": dict(adapters=["a", "c"], weights=[1.0, 0.25], combination_type="svd", svd_rank=3),
    "ties": dict(adapters=["a", "b"], weights=[0.7, 1.1], combination_type="ties", density=0.5),
    "ties_negative": dict(adapters=["a", "b"], weights=[0.7, -1.1], combination_type="ties", density=0.3, majority_sign_method="frequency"),
    "ties_svd": dict(adapters=["a", "b", "c"], weights=[0.7, 1.1, -0.5], combination_type="ties_svd", density=0.4),
    "magnitude_prune": dict(adapters=["a", "b"], weights=[0.7, 1.1], combination_type="magnitude_prune", density=0.6),
    "magnitude_prune_svd": dict(adapters=["a", "c"], weights=[0.7, -1.1], combination_type="magnitude_prune_svd", density=0.6, svd_rank=5),
    # Nothing is dropped at density 1, and so nothing is random.
    "dare_linear": dict(adapters=["a", "b"], weights=[0.7, 1.1], combination_type="dare_linear", density=1.0),
    "dare_ties_svd": dict(adapters=["a", "b"], weights=[0.7, 1.1], combination_type="dare_ties_svd", density=1.0),
}


def deltas(model, adapter):
    return {name.removeprefix("base_model.model."): module.get_delta_weight(adapter)
            for name, module in model.named_modules()
            if isinstance(module, LoraLayer) and (adapter in module.lora_A or adapter in module.lora_embedding_A)}


def main(root):
    fresh(root / "combine")
    for name, options in ADAPTERS.items():
        save(attach(load(root / "families" / FAMILY), FAMILY, f"combine-{name}", **options), fresh(root / "combine" / name), save_embedding_layers=False)
    from peft import PeftModel
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(load(root / "families" / FAMILY), root / "combine" / "a", adapter_name="a")
        for name in list(ADAPTERS)[1:]:
            model.load_adapter(root / "combine" / name, adapter_name=name)
        out = {}
        for case, options in CASES.items():
            model.base_model.add_weighted_adapter(adapter_name=case, **options)
            for module, delta in deltas(model, case).items():
                out[f"{case}/{module}"] = delta
    write_json(root / "combine" / "cases.json", CASES)
    write_tensors(root / "combine" / "deltas.safetensors", out)
    print(f"combine: {len(CASES)} cases, {len(out)} deltas, largest {max(d.abs().max().item() for d in out.values()):.3g}", flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
