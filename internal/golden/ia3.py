"""(IA)3 made by peft: see methods.py.

    ia3.py OUT_DIR     reads OUT_DIR/families and OUT_DIR/encoders, writes OUT_DIR/methods/MODEL-CASE/,
                       OUT_DIR/encoders/bert_ia3/ (as encoders.py does for LoRA, and merged_logits) and OUT_DIR/ia3/
"""
import pathlib
import sys
import warnings

from adapters import save
from common import fresh, load, rng, write_json, write_tensors
from encoders import padded
from methods import ADAMW, keys, make, randomise
import quant_golden  # it chooses the layout of bitsandbytes that small models fit
import torch
import transformers as hf
from peft import IA3Config, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import constants


def causal(root):
    def case(family, name, drawn=(), **options):
        merge = options.pop("merge", True)
        make(root, family, "ia3_" + name, IA3Config(task_type="CAUSAL_LM", **options), drawn=drawn, noise=0.3, merge=merge)

    case("llama", "default")
    case("qwen2", "default")
    case("gpt2", "transposed", fan_in_fan_out=True)
    case("gpt2", "inputs", fan_in_fan_out=True, target_modules=["c_fc", "attn.c_proj"], feedforward_modules=["c_fc"])
    case("llama_bias", "biases", target_modules=["q_proj", "up_proj", "down_proj"], feedforward_modules=["up_proj"])
    case("llama", "regex", target_modules=r".*layers\.1\..*_proj", feedforward_modules=r".*\.(o|up)_proj", exclude_modules=["gate_proj"])
    # A list of feed-forward modules would make a file that peft cannot read.
    case("llama", "all_linear", target_modules="all-linear", feedforward_modules=r".*\.(gate|o)_proj")
    # The end of a name counts without a dot before it: up_proj is feed-forward too.
    case("llama", "ends", target_modules=["up_proj", "layers.0.self_attn.q_proj", "p_proj"], feedforward_modules=["p_proj"])
    case("llama", "random", ("ia3_l",), init_ia3_weights=False, target_modules=["q_proj", "lm_head"], feedforward_modules=[])
    case("llama", "save_head", modules_to_save=["lm_head"])
    assert not quant_golden.bitsandbytes.nn.modules.has_avx512bf16()
    case("llama_nf4", "quantised", merge=False)  # peft refuses to merge it


def classifier(root):
    """BERT with its default targets: the keys and values, and both kinds of output.dense at their inputs."""
    def base():
        return hf.AutoModelForSequenceClassification.from_pretrained(root / "encoders" / "bert_sequence", attn_implementation="eager").float()

    folder = fresh(root / "encoders" / "bert_ia3")
    model = get_peft_model(base(), IA3Config(task_type="SEQ_CLS")).eval()
    model.peft_config["default"].base_model_name_or_path = "bert_sequence"
    randomise(model, "bert_ia3", ("classifier",), 0.3)
    save(model, folder)
    ids, mask = padded([12, 7, 3, 9], "right", 0, "bert_ia3")
    labels = torch.tensor([1, 2, 0, 2])
    run = model(input_ids=ids, attention_mask=mask, labels=labels)
    run.loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    named = {n: k.removeprefix("base_model.model.") for n, k in keys(model).items()}
    out = {"ids": ids, "mask": mask, "labels": labels, "loss": run.loss.reshape(1), "logits": run.logits}
    out |= {"gradient/" + named[n]: p.grad.clone() for n, p in trained.items()}
    torch.optim.AdamW(trained.values(), **ADAMW | dict(eps=1e-8)).step()
    out |= {"after/" + named[n]: p for n, p in trained.items()}
    with torch.no_grad():
        merged = PeftModel.from_pretrained(base(), folder).eval().merge_and_unload()
        out["merged_logits"] = merged(input_ids=ids, attention_mask=mask).logits
        plain = base().eval()(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(out["merged_logits"], run.logits.detach(), rtol=1e-5, atol=1e-5)
    print(f"bert_ia3: {len(trained)} tensors, loss {run.loss.item():.4f}, the adapter moves logits by {(plain - run.logits).abs().max().item():.2f}", flush=True)
    write_tensors(folder / "golden.safetensors", out)


SUMS = {
    "halves": dict(adapters=["a", "b"], weights=[0.5, 0.5]),
    "negative": dict(adapters=["b", "a", "c"], weights=[-1.5, 2.25, 0.5]),
    "one": dict(adapters=["c"], weights=[-1.0]),
    "nothing": dict(adapters=["a", "b"], weights=[0.0, 0.0]),
}


def sums(root):
    """ia3/{a,b,c} are adapters; sums.safetensors has CASE/KEY, the vectors of add_weighted_adapter."""
    for name in "abc":
        model = get_peft_model(load(root / "families" / "llama"), IA3Config(task_type="CAUSAL_LM"))
        model.peft_config["default"].base_model_name_or_path = "families/llama"
        randomise(model, f"ia3-{name}", (), 0.3)
        save(model, fresh(root / "ia3" / name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(load(root / "families" / "llama"), root / "ia3" / "a", adapter_name="a")
        for name in "bc":
            model.load_adapter(root / "ia3" / name, adapter_name=name)
        out = {}
        for case, options in SUMS.items():
            model.base_model.add_weighted_adapter(adapter_name=case, **options)
            out |= {f"{case}/{k}": v.clone() for k, v in get_peft_model_state_dict(model, adapter_name=case, save_embedding_layers=False).items()}
    write_json(root / "ia3" / "sums.json", SUMS)
    write_tensors(root / "ia3" / "sums.safetensors", out)


GEOMETRY = {  # in, out, kernel, groups
    "plain": (4, 6, (3, 1), 1),
    "grouped": (6, 4, (1, 3), 2),
    "volume": (3, 4, (3, 1, 3), 1),
}


class Convolutions(torch.nn.Module):
    __module__ = "ia3"  # peft saves it; as a program this file is another

    def __init__(self):
        super().__init__()
        for name, (inputs, outputs, kernel, groups) in GEOMETRY.items():
            layer = (torch.nn.Conv2d if len(kernel) == 2 else torch.nn.Conv3d)(inputs, outputs, kernel, groups=groups)
            with torch.no_grad():
                for part, p in layer.named_parameters():
                    p.copy_(torch.from_numpy(0.3 * rng("ia3-conv", name, part).standard_normal(tuple(p.shape))))
            setattr(self, name, layer)


def convolutions(root):
    """ia3/{conv_inputs,conv_outputs} are adapters of convolutions alone; golden.safetensors has x.MODULE, weight.MODULE,
    bias.MODULE, y.MODULE, g.MODULE, grad.KEY of sum(g * y), and merged.MODULE, merged_bias.MODULE."""
    for case, forward in dict(conv_inputs=list(GEOMETRY), conv_outputs=[]).items():
        folder = fresh(root / "ia3" / case)
        config = IA3Config(target_modules=list(GEOMETRY), feedforward_modules=forward)
        model = get_peft_model(Convolutions(), config).eval()
        randomise(model, case, (), 0.3)
        save(model, folder)
        out, total = {}, 0
        for name, (inputs, _, kernel, _) in GEOMETRY.items():
            layer = getattr(model.base_model.model, name)
            x = torch.from_numpy(rng("ia3-x", name).standard_normal((2, inputs, 4, 5, 3)[: 2 + len(kernel)])).float()
            y = layer(x)
            g = torch.from_numpy(rng("ia3-g", name).standard_normal(tuple(y.shape))).float()
            total = total + (g * y).sum()
            base = layer.base_layer
            out |= {f"x.{name}": x, f"y.{name}": y, f"g.{name}": g, f"weight.{name}": base.weight.clone(), f"bias.{name}": base.bias.clone()}
        total.backward()
        out |= {"grad." + n.replace(".default", ""): p.grad for n, p in model.named_parameters() if p.requires_grad}
        merged = model.merge_and_unload()
        for name in GEOMETRY:
            out |= {f"merged.{name}": getattr(merged, name).weight, f"merged_bias.{name}": getattr(merged, name).bias}
        write_tensors(folder / "golden.safetensors", out)
    write_json(root / "ia3" / "geometry.json", {n: dict(zip(("In", "Out", "Kernel", "Groups"), g)) for n, g in GEOMETRY.items()})


def defaults(root):
    """ia3/defaults.json: the targets by model_type, and which of them are feed-forward."""
    write_json(root / "ia3" / "defaults.json", {
        "targets": constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
        "feedforward": constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING})


def main(root):
    causal(root)
    classifier(root)
    sums(root)
    convolutions(root)
    defaults(root)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
