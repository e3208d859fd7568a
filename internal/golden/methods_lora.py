"""LoRA beyond A and B on linear layers, made by peft: see methods.py.

    methods_lora.py OUT_DIR     reads OUT_DIR/families, writes OUT_DIR/methods/MODEL-CASE/
"""
import pathlib
import sys

from adapters import save
from common import fresh, rng, write_tensors
from methods import make, randomise
import torch
from peft import LoraConfig, get_peft_model


def lora(**options):
    return LoraConfig(task_type="CAUSAL_LM", **dict(r=2, lora_alpha=6) | options)


def main(root):
    make(root, "llama", "lora_plain", lora(target_modules=["q_proj", "down_proj"]))
    make(root, "llama", "lora_save_head", lora(target_modules=["q_proj"], modules_to_save=["lm_head"]), merge=True)
    make(root, "llama", "lora_parameters", lora(target_modules=["v_proj"], target_parameters=["q_proj.weight", "layers.1.mlp.up_proj.weight"],
                                                rank_pattern={"up_proj.weight": 3}), quiet=True)
    make(root, "llama", "lora_only_parameters", lora(target_modules=[], target_parameters=["k_proj.weight"], use_rslora=True))
    make(root, "llama", "lora_replicated", lora(target_modules=["q_proj", "up_proj"], layer_replication=[[0, 1], [0, 2], [1, 2]]), merge=False)
    experts(root)


class Experts(torch.nn.Module):
    """Two parameters of three axes in one module, as mixture-of-experts layers store them."""

    def __init__(self, key, is_transposed):
        super().__init__()
        self.is_transposed = is_transposed
        shape = (3, 4, 5) if is_transposed else (3, 5, 4)
        self.up = torch.nn.Parameter(torch.from_numpy(rng(key, "up").standard_normal(shape)).float())
        self.down = torch.nn.Parameter(torch.from_numpy(rng(key, "down").standard_normal((shape[0], shape[2], shape[1]))).float())

    def forward(self, x):
        x = torch.einsum("bi,eio->beo" if self.is_transposed else "bi,eoi->beo", x, self.up)
        return torch.einsum("bei,eio->beo" if self.is_transposed else "bei,eoi->beo", x, self.down)


def experts(root):
    """Adapters of a module with two such parameters, and what merging makes of them."""
    for name, is_transposed in (("experts", False), ("experts_transposed", True)):
        folder, base = fresh(root / "methods" / name), torch.nn.Sequential(Experts(name, is_transposed))
        before = {k: v.clone() for k, v in base.state_dict().items()}
        model = get_peft_model(base, LoraConfig(r=2, lora_alpha=6, target_modules=[], target_parameters=["0.up", "0.down"], rank_pattern={"0.down": 3}))
        randomise(model, name, ("lora_A",), 0.1)
        model.peft_config["default"].base_model_name_or_path = name
        save(model, folder)
        after = model.merge_and_unload().state_dict()
        write_tensors(folder / "golden.safetensors", {"before." + k: v for k, v in before.items()} | {"after." + k: v for k, v in after.items()})


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
