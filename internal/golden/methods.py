"""Adapters of one method made by peft on the tiny models: what every method's script shares.

A script calls make() for each of its cases, which writes OUT_DIR/methods/MODEL-CASE/ with the adapter as peft
saves it and golden.safetensors: input_ids, labels, logits, loss, grad.KEY for each trained tensor by its key in
the file, step.KEY after one step of AdamW, and merged_logits. pefttest.Golden reads these folders in Go.
"""
import contextlib
import io
import json
import pathlib
import tempfile
import warnings

from adapters import save
from common import fresh, load, rng, write_json, write_tensors
from lora_golden import batch
import torch
from safetensors.torch import load_file, save_file
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.optimizers import create_loraplus_optimizer

# The epsilon keeps the first step of Adam from being a mere sign, which rounding could turn.
ADAMW = dict(lr=0.01, betas=(0.9, 0.999), eps=1e-3, weight_decay=0.0)


def randomise(model, key, drawn, noise):
    """Move each trained tensor off its initial value: those whose name contains one of drawn are
    replaced by N(0, 0.3), since torch drew them; noise N(0, noise) is added to all others."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.requires_grad:
                continue
            x = torch.from_numpy(rng("method", key, name).standard_normal(tuple(p.shape))).to(p.dtype)
            p.copy_(0.3 * x if any(part in name for part in drawn) else p + noise * x)


def keys(model):
    """The key in the file of each trained parameter, by the parameter's identity."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
    of = {}
    for k, t in state.items():
        of.setdefault(t.data_ptr(), k)  # of a tensor that modules share the first
    return {name: of[p.data_ptr()] for name, p in model.named_parameters() if p.requires_grad}


def printed(model):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        model.print_trainable_parameters()
    return text.getvalue().rstrip("\n")


def fix_signs(path):
    """Give each initial row of A, the second half, a positive largest element: a singular value
    decomposition leaves the sign to the processor."""
    tensors = load_file(path)
    for name, a in tensors.items():
        if name.endswith("lora_A.weight"):
            b = tensors[name.replace("lora_A", "lora_B")]
            for i in range(len(a) // 2, len(a)):
                if a[i][a[i].abs().argmax()] < 0:
                    a[i], b[:, i] = -a[i], -b[:, i]
    save_file(tensors, str(path), metadata={"format": "pt"})


def make(root, family, case, config, *, drawn=("lora_A",), noise=0.1, merge=True, before=None, after_step=None, quiet=False, prepare=None,
         converted=False, loraplus=None):
    """Write one case. prepare(base) may change the loaded base first, before(model) the adapter after it was randomised,
    after_step(model, step) is called after the optimizer's step. quiet: peft's warnings are expected.
    converted: the base was changed; MODEL-CASE/converted/ is the adapter by peft's conversion for the base as it was.
    (With DoRA there is none: peft's conversion loses the magnitudes.) loraplus: make that many "steps" with the
    optimizer of LoRA+, with "ratio", "embedding" and "decay"."""
    key = f"{family}-{case}"
    folder, path = fresh(root / "methods" / key), root / "families" / family
    ids, labels = batch(key)

    def base():
        model = load(path)
        if prepare:
            prepare(model)
        return model

    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = get_peft_model(base(), config).eval()
    known = ("is_gradient_checkpointing", "tie_word_embeddings")
    unexpected = [str(w.message) for w in seen if not any(k in str(w.message) for k in known)]
    if unexpected and not quiet:
        raise SystemExit(f"{key}: peft warns: {unexpected}")
    adapter = model.peft_config["default"]
    adapter.base_model_name_or_path = f"families/{family}"  # not the path of this machine
    with tempfile.TemporaryDirectory() as initial:
        converts = converted and not config.use_dora
        if converts:
            init, adapter.init_lora_weights = adapter.init_lora_weights, True
            save(model, pathlib.Path(initial, "initial"))
            adapter.init_lora_weights = init
        randomise(model, key, drawn, noise)
        if before:
            before(model)
        save(model, folder, save_embedding_layers=False)
        if converts:
            save(model, folder / "converted", save_embedding_layers=False,
                 path_initial_model_for_weight_conversion=str(pathlib.Path(initial, "initial")))
            fix_signs(folder / "converted" / "adapter_model.safetensors")
    trainable, everything = model.get_nb_trainable_parameters()
    info = dict(model=family, case=case, trainable=trainable, all=everything, printed=printed(model), merge=merge,
                config=json.loads((folder / "adapter_config.json").read_text()))
    info |= {name: value for name, value in dict(converted=converted, loraplus=loraplus).items() if value}

    run = model(input_ids=ids, labels=labels, use_cache=False)
    with torch.no_grad():
        base_logits = load(path)(ids).logits
        if (run.logits - base_logits).abs().max() < 0.02:
            raise SystemExit(f"{key}: the adapter changes nothing")
    out = dict(input_ids=ids, labels=labels, logits=run.logits, loss=run.loss)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **ADAMW)
    if loraplus:
        optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, loraplus_lr_ratio=loraplus["ratio"], loraplus_lr_embedding=loraplus["embedding"],
            loraplus_weight_decay=loraplus["decay"], **{k: v for k, v in ADAMW.items() if k != "weight_decay"})
    run.loss.backward()
    named = {name: k for name, k in keys(model).items()}
    out |= {"grad." + named[n]: (torch.zeros_like(p) if p.grad is None else p.grad.clone()) for n, p in model.named_parameters() if p.requires_grad}
    optimizer.step()
    for _ in range(loraplus["steps"] - 1 if loraplus else 0):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        optimizer.step()
    if after_step:
        after_step(model, 1)
    out |= {"step." + named[n]: p.detach().clone() for n, p in model.named_parameters() if n in named}

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_back = PeftModel.from_pretrained(base(), folder).eval()
        torch.testing.assert_close(read_back(ids).logits, run.logits.detach(), rtol=1e-5, atol=1e-5)
        if merge:
            out["merged_logits"] = read_back.merge_and_unload()(ids).logits
            difference = (out["merged_logits"] - run.logits).abs().max().item()
            print(f"{key:36} loss {run.loss.item():.4f}  |merged-adapter| {difference:.1e}", flush=True)
    write_json(folder / "info.json", info)
    write_tensors(folder / "golden.safetensors", out)
