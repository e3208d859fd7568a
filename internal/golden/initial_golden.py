"""Initialisations of LoRA that look at weights or data, made by peft.

    initial_golden.py OUT_DIR     reads OUT_DIR/families, writes OUT_DIR/initial/

loftq.safetensors: weight, and for each BITS and ITERATIONS quantised_BITS_ITERATIONS, its last quantised weight, and
product_BITS_ITERATIONS, B·A. eva/: an adapter by EVA, with batches.safetensors: input_ids and labels [batches, rows,
length]. corda.safetensors: input_ids [rows, length], and MODE/MODULE, B·A of each module for "ipm" and "kpm".
"""
import contextlib
import dataclasses
import inspect
import io
import pathlib
import sys
import types
import warnings

from adapters import save
from common import IGNORE, fresh, load, random_ids, rng, write_tensors
import peft.tuners.lora.eva as eva_module
import peft.utils.loftq_utils as loftq_utils
import torch
from peft import EvaConfig, LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig

sys.modules.setdefault("attr", types.SimpleNamespace(dataclass=dataclasses.dataclass))  # which peft's corda.py imports, and nothing installs
from peft.tuners.lora.corda import preprocess_corda


def loftq(folder):
    # peft quantises on a GPU; the same on the CPU.
    source = inspect.getsource(loftq_utils.loftq_init).replace('"cuda"', '"cpu"')
    names = dict(vars(loftq_utils))
    exec(source, names)
    weight = 0.3 * torch.from_numpy(rng("loftq").standard_normal((12, 128))).float()
    out = dict(weight=weight)
    for bits in (4, 8):
        for iterations in (1, 3):
            quantised, a, b = names["loftq_init"](weight, bits, 3, iterations)
            out[f"quantised_{bits}_{iterations}"], out[f"product_{bits}_{iterations}"] = quantised, b @ a
    write_tensors(folder / "loftq.safetensors", out)


def eva(root, folder):
    # Exact decompositions: the randomised ones draw torch's random numbers.
    exact = eva_module.IncrementalPCA
    eva_module.IncrementalPCA = lambda **options: exact(**options | dict(lowrank=False))
    ids = random_ids((3, 4, 16), "eva")
    labels = ids.clone()
    labels[:, :, :5] = IGNORE
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=6, target_modules=["q_proj", "o_proj", "down_proj"], init_lora_weights="eva",
                        alpha_pattern={"o_proj": 3}, eva_config=EvaConfig(rho=2.0, tau=0.9))
    model = get_peft_model(load(root / "families" / "llama"), config)
    model.peft_config["default"].base_model_name_or_path = "families/llama"
    data = [dict(input_ids=i, labels=l) for i, l in zip(ids, labels)]
    with contextlib.redirect_stderr(io.StringIO()):
        eva_module.initialize_lora_eva_weights(model, data, show_progress_bar=False)
    eva_module.IncrementalPCA = exact
    save(model, fresh(folder / "eva"))
    write_tensors(folder / "eva" / "batches.safetensors", dict(input_ids=ids, labels=labels))
    print("eva", model.peft_config["default"].rank_pattern)


def corda(root, folder):
    ids = random_ids((24, 16), "corda")
    out = dict(input_ids=ids)
    for mode in ("ipm", "kpm"):
        base = load(root / "families" / "llama")
        config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights="corda",
                            rank_pattern={"down_proj": 3}, corda_config=CordaConfig(corda_method=mode))
        preprocess_corda(base, config, run_model=lambda: [base(row[None]) for row in ids])
        model = get_peft_model(base, config)
        for name, module in model.named_modules():
            if hasattr(module, "lora_A") and len(module.lora_A):
                out[f"{mode}/{name.removeprefix('base_model.model.')}"] = module.lora_B["default"].weight @ module.lora_A["default"].weight
    write_tensors(folder / "corda.safetensors", out)


def main(root):
    folder = fresh(root / "initial")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        loftq(folder)
        eva(root, folder)
        corda(root, folder)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
