"""Relatives of LoRA, made by peft: see methods.py.

    methods_relatives.py OUT_DIR     reads OUT_DIR/families, writes OUT_DIR/methods/MODEL-CASE/
"""
import pathlib
import sys

from common import fresh, write_tensors
from methods import make
import torch
from peft import LoHaConfig, LoKrConfig, MissConfig, VeraConfig


def miss(root):
    def case(name, drawn=(), **options):
        make(root, "llama", f"miss_{name}", MissConfig(task_type="CAUSAL_LM", **options), drawn=drawn)

    case("plain", r=4)
    case("padded", r=6, target_modules=["k_proj", "down_proj", "lm_head"])
    case("random", ("miss_block",), r=8, init_weights=False, target_modules="all-linear", exclude_modules=["up_proj"])
    case("bat", r=4, init_weights="bat", target_modules=["q_proj", "v_proj", "down_proj"])
    case("mini", r=5, mini_r=4, init_weights="mini", target_modules=["q_proj", "gate_proj"], layers_to_transform=[1])


def vera(root):
    def case(name, drawn=(), **options):
        make(root, "llama", f"vera_{name}", VeraConfig(task_type="CAUSAL_LM", **dict(r=5) | options), drawn=drawn, noise=0.3, quiet=True)

    case("plain")
    case("sizes", r=7, d_initial=0.5, target_modules=["v_proj", "down_proj", "gate_proj"])
    case("random", ("vera_lambda",), init_weights=False, target_modules=["q_proj", "lm_head"], layers_to_transform=[0])
    make(root, "gpt2", "vera_conv1d", VeraConfig(task_type="CAUSAL_LM", r=5, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True), drawn=(), noise=0.3)
    case("seed", save_projection=False, projection_prng_key=12345678901, target_modules=["q_proj", "v_proj", "up_proj"])


def loha(root):
    def case(name, drawn=("hada_w1", "hada_w2_a"), **options):
        make(root, "llama", f"loha_{name}", LoHaConfig(task_type="CAUSAL_LM", **dict(r=3, alpha=6) | options), drawn=drawn)

    case("plain")
    case("patterns", target_modules=["q_proj", "down_proj", "lm_head"], rank_pattern={"layers.0.self_attn.q_proj": 2, "down_proj": 1},
         alpha_pattern={"^model.layers.1.self_attn.q_proj": 1})
    case("random", ("hada",), init_weights=False, use_effective_conv2d=True, target_modules="all-linear", exclude_modules=["o_proj", "up_proj"])


def lokr(root):
    def case(name, drawn=("lokr_w1_b", "lokr_w2"), **options):
        make(root, "llama", f"lokr_{name}", LoKrConfig(task_type="CAUSAL_LM", **dict(r=2, alpha=6) | options), drawn=drawn)

    case("plain", target_modules=["q_proj", "v_proj", "gate_proj"])
    case("full", r=8, target_modules=["q_proj", "down_proj"])
    case("both", r=1, decompose_both=True, target_modules=["q_proj", "gate_proj", "lm_head"])
    case("factor", r=3, decompose_factor=2, target_modules=["k_proj", "up_proj"], rank_dropout_scale=True)
    case("lycoris", ("lokr_w1", "lokr_w2_a"), init_weights="lycoris", rank_pattern={"v_proj": 5}, alpha_pattern={"v_proj": 2})
    case("random", ("lokr",), init_weights=False, target_modules="all-linear", exclude_modules=["o_proj", "up_proj"])


def torch_rand(root):
    """Numbers of torch's generator on the CPU, and a later state."""
    out = {}
    for seed in (0, 1, 2**31 + 7, 2**40 + 3, -2):
        g = torch.Generator(device="cpu").manual_seed(seed)
        out[f"{seed}.first"] = torch.empty(9).uniform_(-0.5, 0.7, generator=g)
        torch.empty(1500).uniform_(generator=g)
        out[f"{seed}.later"] = torch.empty(9).uniform_(-3, 1e-3, generator=g)
    write_tensors(fresh(root / "torchrand") / "uniform.safetensors", out)


def main(root):
    miss(root)
    vera(root)
    loha(root)
    lokr(root)
    torch_rand(root)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
