"""Relatives of LoRA, made by peft: see methods.py.

    methods_relatives.py OUT_DIR     reads OUT_DIR/families, writes OUT_DIR/methods/MODEL-CASE/, OUT_DIR/torchrand/
                                     and OUT_DIR/adalora/CASE/, see adalora_steps
"""
import pathlib
import sys
import warnings

from adapters import save
from common import fresh, load, rng, write_json, write_tensors
from lora_golden import batch
from methods import ADAMW, make, randomise
import torch
from peft import AdaLoraConfig, LoHaConfig, LoKrConfig, MissConfig, PeftModel, VeraConfig, get_peft_model
from peft.tuners.adalora import AdaLoraLayer
from peft.utils import constants


def miss(root):
    def case(name, drawn=(), **options):
        make(root, "llama", f"miss_{name}", MissConfig(task_type="CAUSAL_LM", **options), drawn=drawn)

    case("plain", r=4)
    case("padded", r=6, target_modules=["k_proj", "down_proj", "lm_head"])
    case("random", ("miss_block",), r=8, init_weights=False, target_modules="all-linear", exclude_modules=["up_proj"])
    case("bat", r=4, init_weights="bat", target_modules=["q_proj", "v_proj", "down_proj"])
    make(root, "llama_bias", "miss_biases", MissConfig(task_type="CAUSAL_LM", r=4, bias="MiSS_only", target_modules=["q_proj", "down_proj"]), drawn=(), quiet=True)
    case("mini", r=5, mini_r=4, init_weights="mini", target_modules=["q_proj", "gate_proj"], layers_to_transform=[1])


def vera(root):
    def case(name, drawn=(), **options):
        make(root, "llama", f"vera_{name}", VeraConfig(task_type="CAUSAL_LM", **dict(r=5) | options), drawn=drawn, noise=0.3, quiet=True)

    case("plain")
    case("sizes", r=7, d_initial=0.5, target_modules=["v_proj", "down_proj", "gate_proj"])
    case("random", ("vera_lambda",), init_weights=False, target_modules=["q_proj", "lm_head"], layers_to_transform=[0])
    make(root, "gpt2", "vera_conv1d", VeraConfig(task_type="CAUSAL_LM", r=5, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True), drawn=(), noise=0.3)
    make(root, "llama_bias", "vera_biases", VeraConfig(task_type="CAUSAL_LM", r=4, bias="all"), drawn=(), noise=0.3, quiet=True)
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


def uncounted(model):
    """AdaLoRA's ranknum, which is always init_r, as a plain number: peft counts it as one parameter a module."""
    for layer in model.modules():
        if isinstance(layer, AdaLoraLayer):
            numbers = {name: p.detach() for name, p in layer.ranknum.items()}
            del layer.ranknum
            layer.ranknum = numbers


def adalora(root):
    def case(name, family="llama", **options):
        config = AdaLoraConfig(task_type="CAUSAL_LM", **dict(init_r=4, target_r=2, lora_alpha=6, total_step=20, orth_reg_weight=0.0) | options)
        make(root, family, f"adalora_{name}", config, drawn=("lora_",), before=uncounted, after_step=lambda model, step: model.base_model.update_and_allocate(step))

    case("plain")  # prunes with the first step
    case("warmup", tinit=2, tfinal=3, deltaT=4, target_modules=["q_proj", "down_proj", "lm_head"])
    case("conv1d", family="gpt2", target_modules=["c_attn", "mlp.c_fc"], fan_in_fan_out=True)


def adalora_steps(root, case, steps, **options):
    """A whole training: OUT_DIR/adalora/CASE/ holds the adapter as it starts (start/) and as it ends (end/), and
    golden.safetensors: input_ids, labels, loss.N and E.N.MODULE, mask.N.MODULE after step N, logits of end/ read back."""
    folder, path = fresh(root / "adalora" / case), root / "families" / "llama"
    ids, labels = batch(f"adalora-{case}")
    config = AdaLoraConfig(task_type="CAUSAL_LM", **options)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(load(path), config).eval()
    config = model.peft_config["default"]
    config.base_model_name_or_path = "families/llama"
    randomise(model, f"adalora-{case}", ("lora_",), 0)
    save(model, folder / "start", save_embedding_layers=False)
    out = dict(input_ids=ids, labels=labels)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, **ADAMW)
    for step in range(1, steps + 1):
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        out[f"loss.{step}"] = loss
        for name, p in model.base_model.model.named_parameters():
            if "lora_E" in name:
                module = name.replace(".lora_E.default", "")
                out[f"E.{step}.{module}"] = p.clone()
                pattern = (config.rank_pattern or {}).get(name, [True] * p.numel())
                out[f"mask.{step}.{module}"] = torch.tensor(pattern).float()
    ranks = [sum(v) for v in config.rank_pattern.values()]
    print(f"adalora {case}: loss {out['loss.1'].item():.4f} to {loss.item():.4f}, ranks {ranks}")
    save(model, folder / "end", save_embedding_layers=False)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(load(path), folder / "end").eval()
        out["logits"] = model(ids).logits
    write_tensors(folder / "golden.safetensors", out)
    write_json(folder / "info.json", dict(steps=steps))


GEOMETRY = {  # in, out, kernel, stride, padding, groups
    "one": (6, 8, (3,), (2,), (1,), 2),
    "two": (4, 6, (3, 2), (1, 2), (1, 0), 1),
    "grouped": (4, 8, (2, 2), (1, 1), (0, 0), 2),
    "point": (4, 6, (1, 1), (1, 1), (0, 0), 1),
}


class Convolutions(torch.nn.Module):
    def __init__(self, names):
        super().__init__()
        for name in names:
            inputs, outputs, kernel, stride, padding, groups = GEOMETRY[name]
            kind = torch.nn.Conv1d if len(kernel) == 1 else torch.nn.Conv2d
            layer = kind(inputs, outputs, kernel, stride=stride, padding=padding, groups=groups, bias=False)
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(0.3 * rng("conv", name).standard_normal(tuple(layer.weight.shape))))
            setattr(self, name, layer)


def loha_product(layer, n):
    a, b = (getattr(layer, f"hada_w{n}_{x}")["default"] for x in "ab")
    if "default" not in layer.hada_t1:
        return a @ b
    return torch.einsum("ijkl,jr,ip->prkl", getattr(layer, f"hada_t{n}")["default"], b, a)


def convolutions(root):
    """Convolutions alone: OUT_DIR/relatives/CASE/ is the adapter and golden.safetensors with x.MODULE, weight.MODULE,
    y.MODULE, merged.MODULE, g.MODULE and grad.KEY of sum(g * y)."""
    every = list(GEOMETRY)
    cases = dict(
        loha=LoHaConfig(r=2, alpha=3, target_modules=every),
        loha_cores=LoHaConfig(r=2, alpha=3, use_effective_conv2d=True, target_modules=every),
        lokr_full=LoKrConfig(r=4, alpha=3, target_modules=every),
        lokr=LoKrConfig(r=1, alpha=3, decompose_both=True, target_modules=every),
        lokr_cores=LoKrConfig(r=1, alpha=3, use_effective_conv2d=True, target_modules=every),
        adalora=AdaLoraConfig(init_r=3, target_r=2, lora_alpha=4, total_step=9, target_modules=["two", "point"]),
    )
    for case, config in cases.items():
        folder = fresh(root / "relatives" / case)
        names = [n for n in every if n in config.target_modules]
        torch.manual_seed(0)
        model = get_peft_model(Convolutions(names), config).eval()
        randomise(model, f"conv-{case}", ("",), 0)
        save(model, folder)
        out, total = {}, 0
        for name in names:
            inputs, outputs, kernel, *_ = GEOMETRY[name]
            layer = getattr(model.base_model.model, name)
            x = torch.from_numpy(rng("conv-x", name).standard_normal((2, inputs, *(5, 6)[: len(kernel)]))).float()
            y = layer(x)
            if case.startswith("loha"):
                # peft's own backward for cores takes the gradients of w1_a and w2_a with each other's tensors.
                base, delta = layer.base_layer, loha_product(layer, 1) * loha_product(layer, 2) * layer.scaling["default"]
                weight = base.weight + delta.reshape(base.weight.shape)
                again = base._conv_forward(x, weight, None)
                torch.testing.assert_close(again, y, rtol=1e-5, atol=1e-5)
                y = again
            g = torch.from_numpy(rng("conv-g", name).standard_normal(tuple(y.shape))).float()
            total = total + (g * y).sum()
            out |= {f"x.{name}": x, f"y.{name}": y, f"g.{name}": g, f"weight.{name}": layer.base_layer.weight,
                    f"merged.{name}": layer.base_layer.weight + layer.get_delta_weight("default")}
        total.backward()
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        out |= {"grad." + n.replace(".default", ""): p.grad for n, p in named.items()}
        write_tensors(folder / "golden.safetensors", out)
    write_json(root / "relatives" / "geometry.json", {
        n: dict(zip(("In", "Out", "Kernel", "Stride", "Padding", "Groups"), g)) for n, g in GEOMETRY.items()})


def default_targets(root):
    """OUT_DIR/relatives/default_targets.json: each method's choice by model_type."""
    write_json(root / "relatives" / "default_targets.json", {
        method: getattr(constants, f"TRANSFORMERS_MODELS_TO_{method}_TARGET_MODULES_MAPPING")
        for method in ("ADALORA", "VERA", "LOHA", "LOKR", "MISS")})


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
    adalora(root)
    adalora_steps(root, "schedule", 8, init_r=4, target_r=1, tinit=1, tfinal=2, total_step=8, lora_alpha=6, target_modules=["q_proj", "v_proj"])
    adalora_steps(root, "deltaT", 9, init_r=3, target_r=2, tinit=2, tfinal=1, deltaT=3, total_step=9, beta1=0.7, beta2=0.6, orth_reg_weight=0.2,
                  target_modules=["k_proj", "up_proj", "down_proj"])
    convolutions(root)
    default_targets(root)
    torch_rand(root)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
