"""LoRA beyond A and B on linear layers, made by peft: see methods.py.

    methods_lora.py OUT_DIR     reads OUT_DIR/families, writes OUT_DIR/methods/MODEL-CASE/
"""
import pathlib
import sys

from adapters import save
from common import fresh, rng, write_tensors
from methods import make, randomise
import torch
from peft import EvaConfig, LoraConfig, get_peft_model


def lora(**options):
    return LoraConfig(task_type="CAUSAL_LM", **dict(r=2, lora_alpha=6) | options)


def main(root):
    make(root, "llama", "lora_plain", lora(target_modules=["q_proj", "down_proj"]))
    make(root, "llama", "lora_save_head", lora(target_modules=["q_proj"], modules_to_save=["lm_head"]), merge=True)
    make(root, "llama", "lora_parameters", lora(target_modules=["v_proj"], target_parameters=["q_proj.weight", "layers.1.mlp.up_proj.weight"],
                                                rank_pattern={"up_proj.weight": 3}), quiet=True)
    make(root, "llama", "lora_only_parameters", lora(target_modules=[], target_parameters=["k_proj.weight"], use_rslora=True))
    make(root, "llama", "lora_replicated", lora(target_modules=["q_proj", "up_proj"], layer_replication=[[0, 1], [0, 2], [1, 2]]), merge=False)
    make(root, "qwen2", "lora_plus", lora(target_modules=["embed_tokens", "q_proj", "up_proj"], use_dora=True, bias="all"),
         drawn=("lora_A", "lora_embedding_B"), quiet=True, loraplus=dict(ratio=16.0, embedding=2e-3, decay=0.1, steps=3))
    experts(root)
    options(root)
    initialisations(root)


def options(root):
    make(root, "llama", "lora_dora", lora(target_modules=["q_proj", "down_proj"], use_dora=True))
    make(root, "llama", "lora_dora_rslora", lora(target_modules=["v_proj", "up_proj"], use_dora=True, use_rslora=True,
                                                 rank_pattern={"up_proj": 3}, alpha_pattern={"v_proj": 2}))
    make(root, "llama", "lora_dora_embedding", lora(target_modules=["embed_tokens"], use_dora=True), drawn=("lora_embedding_B",))
    make(root, "llama_bias", "lora_dora_bias", lora(target_modules=["q_proj", "up_proj"], use_dora=True, bias="lora_only"), quiet=True)
    make(root, "gpt2", "lora_transposed", lora(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True))
    make(root, "gpt2", "lora_transposed_dora", lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, use_dora=True))
    make(root, "qwen2", "lora_bias_all", lora(target_modules=["q_proj", "up_proj"], bias="all"), quiet=True)
    make(root, "qwen2", "lora_bias_only", lora(target_modules=["v_proj", "up_proj"], bias="lora_only"), quiet=True)
    make(root, "qwen2", "lora_lora_bias", lora(target_modules=["q_proj", "k_proj"], lora_bias=True))
    make(root, "llama", "lora_lora_bias", lora(target_modules=["q_proj"], lora_bias=True), merge=False, quiet=True)


def initialisations(root):
    """A and B are drawn: those of a decomposition may change their sign from processor to processor, their product may not."""
    both = ("lora_A", "lora_B")
    for case, family, config in (
            ("pissa", "llama", dict(target_modules=["q_proj", "down_proj"], init_lora_weights="pissa", rank_pattern={"down_proj": 3})),
            ("pissa_rslora", "llama", dict(target_modules=["o_proj"], init_lora_weights="pissa", use_rslora=True)),
            ("pissa_dora", "llama", dict(target_modules=["k_proj"], init_lora_weights="pissa", use_dora=True)),
            ("pissa_transposed", "gpt2", dict(target_modules=["c_fc"], init_lora_weights="pissa", fan_in_fan_out=True)),
            ("olora", "llama", dict(target_modules=["v_proj", "down_proj"], init_lora_weights="olora"))):
        make(root, family, "lora_" + case, lora(**config), drawn=both, converted=True, quiet=True)
    make(root, "llama", "lora_orthogonal", lora(target_modules=["q_proj"], init_lora_weights="orthogonal"), drawn=both)
    make(root, "llama", "lora_eva", lora(target_modules=["q_proj"], init_lora_weights="eva", eva_config=EvaConfig(rho=1.5)), drawn=both, quiet=True)


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
