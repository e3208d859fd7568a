"""Relatives of LoRA, made by peft: see methods.py.

    methods_relatives.py OUT_DIR     reads OUT_DIR/families, writes OUT_DIR/methods/MODEL-CASE/
"""
import pathlib
import sys

from methods import make
from peft import MissConfig


def miss(root):
    def case(name, drawn=(), **options):
        make(root, "llama", f"miss_{name}", MissConfig(task_type="CAUSAL_LM", **options), drawn=drawn)

    case("plain", r=4)
    case("padded", r=6, target_modules=["k_proj", "down_proj", "lm_head"])
    case("random", ("miss_block",), r=8, init_weights=False, target_modules="all-linear", exclude_modules=["up_proj"])
    case("bat", r=4, init_weights="bat", target_modules=["q_proj", "v_proj", "down_proj"])
    case("mini", r=5, mini_r=4, init_weights="mini", target_modules=["q_proj", "gate_proj"], layers_to_transform=[1])


def main(root):
    miss(root)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
