"""LoRA adapters made by peft on the tiny models: logits, loss, gradients, merged logits, counts.

    lora_golden.py OUT_DIR     reads OUT_DIR/families, writes OUT_DIR/lora/MODEL-CASE/
                               and OUT_DIR/lora/init_facts.json
"""
import contextlib
import io
import math
import pathlib
import sys
import warnings

from adapters import attach, gradients, save
from common import ALL_SEVEN, IGNORE, fresh, load, random_ids, rng, write_json, write_tensors
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

CASES = {
    "qv": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    "seven": dict(r=4, lora_alpha=8, target_modules=ALL_SEVEN),
    "all_linear_exclude": dict(r=2, lora_alpha=6, target_modules="all-linear", exclude_modules=["k_proj", "layers.0.mlp.up_proj"]),
    "patterns": dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"],
                     rank_pattern={"layers.1.self_attn.q_proj": 5, "down_proj": 3},
                     alpha_pattern={"^model.layers.0.self_attn.v_proj": 16, r".*mlp\.down_proj": 1}),
    "rslora": dict(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "o_proj", "gate_proj"]),
    "layers": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"], layers_to_transform=[1]),
    "regex": dict(r=3, lora_alpha=8, target_modules=r".*\.0\.self_attn\.[qk]_proj"),
    "default_targets": dict(r=4, lora_alpha=8),
    "head": dict(r=2, lora_alpha=8, target_modules=["v_proj", "lm_head"]),
    # The scale of Gemma's embedding is of the adapter's part too.
    "embed": dict(r=2, lora_alpha=8, target_modules=["embed_tokens", "q_proj"]),
    "fused": dict(r=2, lora_alpha=8, target_modules=["qkv_proj", "gate_up_proj", "o_proj"]),
    # GPT-2's linears are Conv1D, stored [in, out].
    "conv1d": dict(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True),
    "neox": dict(r=4, lora_alpha=8, target_modules=["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
    "opt": dict(r=2, lora_alpha=8, target_modules=["q_proj", "out_proj", "fc1", "fc2", "project_in", "project_out"]),
    # LoRA on an embedding: for a later issue.
    "embed_later": dict(r=2, lora_alpha=8, target_modules=["embed_tokens", "q_proj"]),
}
WANTED = {
    "llama": ["qv", "seven", "all_linear_exclude", "patterns", "rslora", "layers", "regex", "default_targets", "head", "embed_later"],
    "llama_tied": ["qv", "seven", "all_linear_exclude"],
    "qwen2": ["qv", "seven", "patterns"],
    "qwen3": ["seven", "all_linear_exclude", "rslora"],
    "mistral": ["seven", "layers", "patterns"],
    "gemma_untied": ["embed"],
    "gemma2": ["seven", "default_targets"],
    "gemma3_text": ["all_linear_exclude"],
    "phi3": ["fused"],
    "gpt2": ["conv1d"],
    "gpt_neox": ["neox", "default_targets"],
    "opt_post": ["opt"],
}


def batch(key):
    """ids, labels with -100 in the first row's prompt and at scattered places of the second."""
    ids = random_ids((2, 12), "lora", key)
    labels = ids.clone()
    labels[0, :4] = IGNORE
    labels[1, rng("ignore", key).permutation(12)[:3]] = IGNORE
    return ids, labels


def printed(model):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        model.print_trainable_parameters()
    return text.getvalue().rstrip("\n")


def make(root, family, case):
    key = f"{family}-{case}"
    folder, base = fresh(root / "lora" / key), root / "families" / family
    model = attach(load(base), family, key, **CASES[case])
    save(model, folder, save_embedding_layers=False)
    ids, labels = batch(key)
    run = model(input_ids=ids, labels=labels, use_cache=False)
    run.loss.backward()
    trainable, everything = model.get_nb_trainable_parameters()
    info = dict(model=family, case=case, later=case.endswith("_later"), options=CASES[case], trainable=trainable, all=everything,
                printed=printed(model), scaling={n.removeprefix("base_model.model."): m.scaling["default"]
                                                 for n, m in model.named_modules() if isinstance(m, LoraLayer)})
    out = dict(input_ids=ids, labels=labels, logits=run.logits, loss=run.loss) | gradients(model)

    with torch.no_grad():
        base_logits = load(base)(ids).logits
        if (run.logits - base_logits).abs().max() < 0.05:
            raise SystemExit(f"{key}: the adapter changes nothing")
        read_back = PeftModel.from_pretrained(load(base), folder).eval()
        torch.testing.assert_close(read_back(ids).logits, run.logits.detach(), rtol=1e-6, atol=1e-6)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = read_back.merge_and_unload()
        out["merged_logits"] = merged(ids).logits
    write_json(folder / "info.json", info)
    write_tensors(folder / "golden.safetensors", out)
    difference = (out["merged_logits"] - run.logits).abs().max().item()
    print(f"{key:32} loss {run.loss.item():.4f}  |merged-adapter| {difference:.1e}  {info['printed']}", flush=True)


def init_facts(root):
    """What peft's initialisations draw, measured on matrices large enough to tell."""
    facts = {}
    for name, init in (("default", True), ("gaussian", "gaussian")):
        torch.manual_seed(0)
        layer = torch.nn.Sequential(torch.nn.Linear(4096, 48))
        r = 64
        model = get_peft_model(layer, LoraConfig(r=r, lora_alpha=8, target_modules=["0"], init_lora_weights=init))
        a, b = (getattr(model.base_model.model[0], w)["default"].weight.detach() for w in ("lora_A", "lora_B"))
        if b.abs().max() != 0:
            raise SystemExit("B does not start at zero")
        if name == "default":
            bound = 1 / math.sqrt(4096)
            ok = a.abs().max() <= bound and a.min() < -0.999 * bound and a.max() > 0.999 * bound and \
                abs(a.std() * math.sqrt(3) / bound - 1) < 0.01
            facts[name] = dict(A="uniform in [-bound, bound]", bound=bound, bound_formula="1/sqrt(in_features)", B="zero")
        else:
            ok = abs(a.std() * r - 1) < 0.01 and abs(a.mean()) < 1e-3
            facts[name] = dict(A="normal, mean 0", std=1 / r, std_formula="1/r", B="zero")
        if not ok:
            raise SystemExit(f"{name}: A is not what was expected: min {a.min()} max {a.max()} std {a.std()}")
        facts[name] |= dict(in_features=4096, out_features=48, r=r)
    write_json(root / "lora" / "init_facts.json", facts)


def main(root):
    for family, cases in WANTED.items():
        for case in cases:
            make(root, family, case)
    init_facts(root)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
