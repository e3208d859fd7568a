"""LoRA beyond A and B on linear layers, made by peft: see methods.py.

    methods_lora.py OUT_DIR     reads OUT_DIR/families, writes OUT_DIR/methods/MODEL-CASE/
"""
import pathlib
import sys

from methods import make
from peft import LoraConfig


def lora(**options):
    return LoraConfig(task_type="CAUSAL_LM", **dict(r=2, lora_alpha=6) | options)


def main(root):
    make(root, "llama", "lora_plain", lora(target_modules=["q_proj", "down_proj"]))
    make(root, "llama", "lora_save_head", lora(target_modules=["q_proj"], modules_to_save=["lm_head"]), merge=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
