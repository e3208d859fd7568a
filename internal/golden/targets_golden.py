"""Which modules peft adapts, and with what r, alpha and scaling, for many configurations.

    targets_golden.py OUT_DIR     writes OUT_DIR/targets/targets.json

One line a case. "want" maps the path of each adapted module to [r, alpha, scaling]; a case that fails
has "error" (type and message) instead. "warnings" are peft's. "saved_target_modules" is what goes into
adapter_config.json where that is not the list that was given. "unmatched" names the entries of
a configuration that have no effect: peft lets them pass, this library may refuse them.
"""
import json
import pathlib
import re
import sys
import warnings

from common import VOCAB, fresh
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM


class Tree(torch.nn.Module):
    """A model with nothing but the given leaves (name: module) at dotted paths."""

    def __init__(self, leaves):
        super().__init__()
        for path, leaf in leaves.items():
            at = self
            *parents, last = path.split(".")
            for part in parents:
                if not hasattr(at, part):
                    at.add_module(part, torch.nn.Module())
                at = getattr(at, part)
            at.add_module(last, leaf)


def linear():
    return torch.nn.Linear(6, 5, bias=False)


def llama():
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, hidden_size=8, intermediate_size=12, num_hidden_layers=3,
                                        num_attention_heads=2, num_key_value_heads=1))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=16, n_embd=8, n_layer=2, n_head=2))


def deep():
    """Twelve blocks at the root (layer 1 is not 10 or 11) and a name that ends like another."""
    return Tree({f"blocks.{i}.fc": linear() for i in range(12)} | {"blocks.1.xfc": linear(), "fc": linear(), "head.fc": linear()})


def nested():
    """Mixture-of-experts style paths with two numbers, and an encoder beside a decoder."""
    paths = [f"model.layers.{l}.mlp.experts.{e}.up_proj" for l in range(2) for e in range(2)]
    paths += [f"{side}.layers.{l}.attn.q" for side in ("encoder", "decoder") for l in range(2)] + ["model.classifier", "decoder.classifier.dense"]
    return Tree({p: linear() for p in paths})


MODELS = {"llama": llama, "gpt2": gpt2, "deep": deep, "nested": nested}
QV = ["q_proj", "v_proj"]

# (model, options)
CASES = [
    # names, dotted suffixes, whole paths
    ("llama", dict(target_modules=["q_proj"])),
    ("llama", dict(target_modules=QV, r=4, lora_alpha=16)),
    ("llama", dict(target_modules=QV, r=4, lora_alpha=16, use_rslora=True)),
    ("llama", dict(target_modules=["self_attn.q_proj", "mlp.down_proj"])),
    ("llama", dict(target_modules=["1.self_attn.q_proj"])),
    ("llama", dict(target_modules=["layers.2.mlp.up_proj", "o_proj"])),
    ("llama", dict(target_modules=["model.layers.0.self_attn.k_proj"])),
    ("llama", dict(target_modules=["q_proj", "nothing_here"])),
    ("llama", dict(target_modules=["lm_head"])),
    ("llama", dict(target_modules=["embed_tokens"])),
    ("llama", dict(target_modules=["roj", "q_proj"])),
    ("llama", dict()),  # the default of the model type
    # one regular expression, matched against the whole path
    ("llama", dict(target_modules=r".*\.q_proj")),
    ("llama", dict(target_modules=r"model\.layers\.(0|2)\.self_attn\.[qv]_proj")),
    ("llama", dict(target_modules=r".*(q|k)_proj")),
    ("llama", dict(target_modules=r".*layers\.[^0]\..*_proj")),
    ("llama", dict(target_modules=r".*\.self_attn\.(?!o_proj)\w+")),
    ("llama", dict(target_modules=r".*(?<!down)_proj", exclude_modules=r".*self_attn.*")),
    ("llama", dict(target_modules=r"(?i).*\.Q_PROJ")),
    # all-linear
    ("llama", dict(target_modules="all-linear")),
    ("llama", dict(target_modules="All-Linear")),
    ("llama", dict(target_modules="all-linear", exclude_modules=["mlp.up_proj", "k_proj"])),
    ("llama", dict(target_modules="all-linear", exclude_modules=r".*\.(0|1)\..*")),
    ("llama", dict(target_modules="all-linear", r=2, rank_pattern={"mlp.*": 6})),
    ("gpt2", dict(target_modules="all-linear", fan_in_fan_out=True)),
    ("deep", dict(target_modules="all-linear")),
    ("nested", dict(target_modules="all-linear")),
    # exclude
    ("llama", dict(target_modules=QV, exclude_modules=["v_proj"])),
    ("llama", dict(target_modules=QV, exclude_modules=["layers.1.self_attn.v_proj"])),
    ("llama", dict(target_modules=QV, exclude_modules=["model.layers.2.self_attn.q_proj"])),
    ("llama", dict(target_modules=QV, exclude_modules=r"model\.layers\.0\..*")),
    ("llama", dict(target_modules=QV, exclude_modules=["self_attn"])),
    ("llama", dict(target_modules=["q_proj"], exclude_modules=["not_there"])),
    ("llama", dict(target_modules=["q_proj"], exclude_modules=r"layers\.0.*")),
    # layers_to_transform, layers_pattern
    ("llama", dict(target_modules=QV, layers_to_transform=1)),
    ("llama", dict(target_modules=QV, layers_to_transform=0)),
    ("llama", dict(target_modules=QV, layers_to_transform=[0, 2])),
    ("llama", dict(target_modules=QV, layers_to_transform=[])),
    ("llama", dict(target_modules=["q_proj"], layers_to_transform=[1, 99])),
    ("llama", dict(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="layers")),
    ("llama", dict(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern=["h", "layers"])),
    ("llama", dict(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern=[])),
    ("llama", dict(target_modules=["model.layers.0.self_attn.k_proj", "q_proj"], layers_to_transform=[1])),
    ("llama", dict(target_modules=["q_proj", "lm_head"], layers_to_transform=[0])),
    ("deep", dict(target_modules=["fc"], layers_to_transform=[1])),
    ("deep", dict(target_modules=["fc"], layers_to_transform=[1], layers_pattern="blocks")),
    ("deep", dict(target_modules=["blocks.1.fc", "blocks.10.fc"])),
    ("deep", dict(target_modules=["1.fc"])),
    ("deep", dict(target_modules=["fc"])),
    ("nested", dict(target_modules=["up_proj"], layers_to_transform=[1])),
    ("nested", dict(target_modules=["up_proj"], layers_to_transform=[0], layers_pattern="experts")),
    ("nested", dict(target_modules=["q"], layers_to_transform=[1], layers_pattern="decoder.layers")),
    ("nested", dict(target_modules=["experts.1.up_proj", "encoder.layers.0.attn.q"])),
    # modules_to_save are never adapted, nor what is inside them
    ("nested", dict(target_modules=["q", "dense"], modules_to_save=["classifier"])),
    # rank_pattern, alpha_pattern: the first key in order that matches the end of the path
    ("llama", dict(target_modules=QV, r=4, lora_alpha=8, rank_pattern={"q_proj": 2})),
    ("llama", dict(target_modules=QV, r=4, lora_alpha=8, alpha_pattern={"v_proj": 32})),
    ("llama", dict(target_modules=QV, r=4, lora_alpha=8, rank_pattern={"layers.1.self_attn.q_proj": 1, "q_proj": 2}, alpha_pattern={"q_proj": 5})),
    ("llama", dict(target_modules=QV, r=4, lora_alpha=8, rank_pattern={"q_proj": 2, "layers.1.self_attn.q_proj": 1})),
    ("llama", dict(target_modules=QV, r=4, lora_alpha=8, rank_pattern={"^model.layers.0.self_attn.q_proj": 9})),
    ("llama", dict(target_modules=QV, r=4, lora_alpha=8, rank_pattern={"^layers.0.self_attn.q_proj": 9, "^q_proj": 3})),
    ("llama", dict(target_modules=QV, r=4, lora_alpha=8, rank_pattern={r"layers\.[12]\..*": 6}, alpha_pattern={r".*\.2\..*|.*0.self_attn.q_proj": 12})),
    ("llama", dict(target_modules=QV, r=4, lora_alpha=8, rank_pattern={"proj": 9, "_proj": 7, "v_pro.": 3})),
    ("llama", dict(target_modules=QV, r=4, lora_alpha=8, use_rslora=True, rank_pattern={"q_proj": 9}, alpha_pattern={"v_proj": 3})),
    ("llama", dict(target_modules=QV, r=4, lora_alpha=8, rank_pattern={"k_proj": 9})),
    ("deep", dict(target_modules=["fc"], r=4, lora_alpha=8, rank_pattern={"^fc": 1, "head.fc": 2, "fc": 3})),
    ("deep", dict(target_modules=["fc", "xfc"], r=4, lora_alpha=8, rank_pattern={"blocks.1.fc": 2}, alpha_pattern={"^blocks.1.fc": 4, "xfc": 16})),
    # gpt2: Conv1D
    ("gpt2", dict(fan_in_fan_out=True)),
    ("gpt2", dict(target_modules=["c_attn"])),
    ("gpt2", dict(target_modules=["attn.c_proj", "c_fc"], fan_in_fan_out=True)),
    ("gpt2", dict(target_modules=["c_proj"], fan_in_fan_out=True, layers_to_transform=[1], layers_pattern="h")),
    ("gpt2", dict(target_modules=r"transformer\.h\.0\.mlp\..*", exclude_modules=["act", "dropout"], fan_in_fan_out=True)),
    ("llama", dict(target_modules=["q_proj"], fan_in_fan_out=True)),
    # errors
    ("llama", dict(target_modules=["q_porj"])),
    ("llama", dict(target_modules=r"q_proj")),
    ("llama", dict(target_modules=["Q_PROJ"])),
    ("llama", dict(target_modules=["q_proj."])),
    ("llama", dict(target_modules=[])),
    ("llama", dict(target_modules=["q_proj"], exclude_modules=["q_proj"])),
    ("llama", dict(target_modules=r".*", exclude_modules=r".*")),
    ("llama", dict(target_modules=["q_proj"], layers_to_transform=[7])),
    ("llama", dict(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="h")),
    ("llama", dict(target_modules=["self_attn"])),
    ("llama", dict(target_modules=["input_layernorm"])),
    ("llama", dict(target_modules=r".*q_proj", layers_to_transform=[1])),
    ("llama", dict(target_modules=r".*q_proj", layers_pattern="layers")),
    ("llama", dict(target_modules=["q_proj"], layers_pattern="layers")),
    ("llama", dict(target_modules=["q_proj"], r=0)),
    ("llama", dict(target_modules=["q_proj"], r=-3)),
    ("llama", dict(target_modules=["q_proj"], rank_pattern={"q_proj": 0})),
    ("llama", dict(target_modules=["q_proj"], lora_dropout=1.5)),
    ("llama", dict(target_modules=["q_proj"], lora_dropout=1.0)),
    ("llama", dict(target_modules=["q_proj"], lora_dropout=-0.5)),
    ("llama", dict(target_modules=["q_proj"], init_lora_weights="something")),
    ("llama", dict(target_modules=r".*(q_proj")),
    ("deep", dict()),
]


def unmatched(options, adapted, paths):
    """The entries of each list or pattern of options that have no effect."""
    def ends(entry, among):
        return any(p == entry or p.endswith("." + entry) for p in among)

    found = {}
    if isinstance(options.get("target_modules"), list):
        found["target_modules"] = [t for t in options["target_modules"] if not ends(t, paths)]
    exclude = options.get("exclude_modules")
    if isinstance(exclude, str):
        found["exclude_modules"] = [exclude] if not any(re.fullmatch(exclude, p) for p in paths) else []
    elif exclude:
        found["exclude_modules"] = [e for e in exclude if not ends(e, paths)]
    for key in ("rank_pattern", "alpha_pattern"):
        # peft takes the first key that fits, so a later one can be shadowed.
        used = {next((k for k in options.get(key, {}) if re.match(rf"(.*\.)?({k})$", p)), None) for p in adapted}
        found[key] = [k for k in options.get(key, {}) if k not in used]
    layers = options.get("layers_to_transform")
    if isinstance(layers, list):
        found["layers_to_transform"] = [n for n in layers if not any(f".{n}." in f".{p}." for p in adapted)]
    return {k: v for k, v in found.items() if v}


def outcome(name, options):
    model = MODELS[name]()
    paths = [p for p, _ in model.named_modules() if p]
    case = dict(model=name, options=options)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            model = get_peft_model(model, LoraConfig(**options))
        except Exception as e:
            text = re.sub(r"\n.*\n", " ... ", str(e), flags=re.DOTALL)  # drop the inside of a printed module
            return case | dict(error=dict(type=type(e).__name__, message=text))
    messages = [str(w.message) for w in seen if "is_gradient_checkpointing" not in str(w.message)]
    if messages:
        case["warnings"] = messages
    config = model.peft_config["default"]
    given, saved = options.get("target_modules"), config.target_modules
    if not isinstance(saved, str) and (given is None or isinstance(given, str) or set(given) != set(saved)):
        case["saved_target_modules"] = sorted(saved)
    case["trainable"] = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    case["want"] = {n.removeprefix("base_model.model."): [m.r["default"], m.lora_alpha["default"], m.scaling["default"]]
                    for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    ineffective = unmatched(options, list(case["want"]), paths)
    if ineffective:
        case["unmatched"] = ineffective
    return case


def modules(model):
    """Every path with its class; weights as torch keeps them ([out, in] for Linear, [in, out] for Conv1D)."""
    return [dict(path=p, kind=type(m).__name__) | (dict(weight=list(m.weight.shape)) if isinstance(getattr(m, "weight", None), torch.Tensor) else {})
            for p, m in model.named_modules() if p]


def compact(value):
    return json.dumps(value, sort_keys=False, ensure_ascii=True)


def main(root):
    folder = fresh(root / "targets")
    results = [outcome(name, options) for name, options in CASES]
    parts = ['{\n "models": {\n']
    parts.append(",\n".join(f'  "{n}": [\n' + ",\n".join("   " + compact(m) for m in modules(make())) + "\n  ]" for n, make in MODELS.items()))
    parts.append('\n },\n "default_targets": {\n')
    parts.append(",\n".join(f"  {compact(k)}: {compact(v)}" for k, v in sorted(DEFAULTS.items())))
    parts.append('\n },\n "cases": [\n' + ",\n".join("  " + compact(r) for r in results) + "\n ]\n}\n")
    (folder / "targets.json").write_text("".join(parts))
    json.loads("".join(parts))
    print(f"targets: {len(results)} cases, {sum('error' in r for r in results)} errors", flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
