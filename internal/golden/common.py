"""What every script here shares: quiet offline libraries, seeded numbers, small writers.

All random numbers come from numpy's PCG64, keyed by a text, so a fixture does not
depend on the order in which its parts were drawn nor on torch's vector width.
"""
import hashlib
import json
import os
import pathlib
import shutil
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("USE_HUB_KERNELS", "0")

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # transformers warns about itself
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(int(os.environ.get("GOLDEN_THREADS", "2")))

VOCAB = 64
IGNORE = -100
ALL_SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def rng(*key):
    """A numpy generator that depends on the key alone."""
    digest = hashlib.sha256("/".join(str(k) for k in key).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))


def random_ids(shape, *key):
    """Token ids in [3, VOCAB): 0, 1 and 2 are kept for pad, bos and eos."""
    return torch.from_numpy(rng("ids", *key).integers(3, VOCAB, shape).astype(np.int64))


def neutral_norm(model):
    """The stored value of a norm's weight that scales by 1: Gemma's norms scale by 1 + weight."""
    return 0.0 if model.config.model_type.startswith("gemma") else 1.0


def is_norm(name):
    """Whether a parameter is the scale of a norm."""
    return ("norm" in name or ".ln_" in name) and not name.endswith(".bias")


EMBEDDINGS = ("embed_tokens", "embed_positions", ".wte.", ".wpe.", "embed_in")


def fill(model, key):
    """Overwrite every weight so that each one matters: matrices N(0, 0.3), embeddings
    and biases N(0, 0.5), norm scales 1 + N(0, 0.3)."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            x = rng("weight", key, name).standard_normal(tuple(p.shape))
            if is_norm(name):
                x = neutral_norm(model) + 0.3 * x
            elif name.endswith(".bias") or any(e in name for e in EMBEDDINGS):
                x = 0.5 * x
            else:
                x = 0.3 * x
            p.copy_(torch.from_numpy(x).to(p.dtype))


def load(folder, dtype=torch.float32):
    """The model of a folder in float32, eager attention, evaluation mode, strict."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise SystemExit(f"{folder}: {what}: {sorted(info[what])}")
    return model.eval()


def fresh(path):
    """An empty folder at path."""
    path = pathlib.Path(path)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def write_tensors(path, tensors):
    """Safetensors with integers as int32 and everything else as float32."""
    out = {}
    for name, t in tensors.items():
        t = torch.as_tensor(t).detach()
        t = t.to(torch.float32) if t.is_floating_point() else t.to(torch.int32)
        out[name] = t.contiguous().clone()
    save_file(out, str(path), metadata={"format": "pt"})


def write_json(path, value):
    pathlib.Path(path).write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")

