"""Making, saving and reading LoRA adapters with peft, for the scripts here."""
import json
import math
import warnings

from common import rng
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict


def attach(model, family, key, **options):
    """The model with a LoRA on it whose A and B are both non-zero, drawn from key.

    A is U(-1/sqrt(in), 1/sqrt(in)), as peft draws it; B is N(0, 0.1) so that it matters.
    """
    config = LoraConfig(task_type="CAUSAL_LM", **options)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = get_peft_model(model, config)
    known = ("is_gradient_checkpointing", "tie_word_embeddings")
    unexpected = [str(w.message) for w in seen if not any(k in str(w.message) for k in known)]
    if unexpected:
        raise SystemExit(f"{key}: peft warns: {unexpected}")
    model.peft_config["default"].base_model_name_or_path = f"families/{family}"  # not the path of this machine
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.requires_grad:
                continue
            if "lora_A" in name:
                bound = 1 / math.sqrt(p.shape[1])
                x = rng("A", key, name).uniform(-bound, bound, tuple(p.shape))
            else:
                x = 0.1 * rng("B", key, name).standard_normal(tuple(p.shape))
            p.copy_(torch.from_numpy(x))
    return model


def save(model, folder, **options):
    """save_pretrained, without the model card and with the set of targets in a fixed order
    (peft writes it in hash order)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **options)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    for key in ("target_modules", "exclude_modules", "feedforward_modules"):
        if isinstance(config.get(key), list):
            config[key].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


def disk_name(name):
    """The name on disk of an adapter parameter."""
    return name.replace(".default", "")


def adapter_tensors(model, prefix):
    return {prefix + k: v.clone() for k, v in get_peft_model_state_dict(model, save_embedding_layers=False).items()}


def gradients(model):
    return {"grad." + disk_name(n): p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
