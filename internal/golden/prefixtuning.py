"""Prefix tuning, prompt tuning, P-tuning and multitask prompt tuning, made by peft.

    prefixtuning.py OUT_DIR     reads OUT_DIR/families and OUT_DIR/encoders, writes OUT_DIR/prefixtuning/MODEL-CASE/

Each folder is the adapter as peft saves it; prompt_encoder.safetensors beside it holds the state_dict of peft's
prompt encoder where that is more than what peft saves, so that training can go on. golden.safetensors has
    KIND_ids, KIND_mask, KIND_positions?, KIND_logits    for the batches plain, right and left (padding)
    labels, tasks?, loss, grad.NAME, step.NAME           of one training step on the batch right
    prompt.N, new.N                                      greedy generation, each prompt by itself
info.json says more. For the prompt methods peft shifts no position for padding on the left: neither do we, when
no positions are given.
"""
import json
import pathlib
import sys
import warnings

from adapters import save
from common import IGNORE, fresh, load, random_ids, rng, write_json, write_tensors
from encoders import padded
from methods import ADAMW, printed
import torch
import transformers
from peft import (MultitaskPromptTuningConfig, PeftModel, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig,
                  get_peft_model)
from safetensors.torch import load_file

N, NEW, MIN_GAP = 5, 8, 0.005
GREEDY = transformers.GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None, bos_token_id=1)
MODELS = ["llama", "qwen2", "gpt2", "bert_sequence"]
CASES = {
    "prefix": (PrefixTuningConfig, {}),
    "prefix_projection": (PrefixTuningConfig, dict(prefix_projection=True, encoder_hidden_size=12)),
    "prompt": (PromptTuningConfig, {}),
    "p_mlp": (PromptEncoderConfig, dict(encoder_hidden_size=12)),
    "p_lstm": (PromptEncoderConfig, dict(encoder_reparameterization_type="LSTM", encoder_hidden_size=10)),
    "multitask": (MultitaskPromptTuningConfig, dict(num_tasks=3, num_ranks=2)),
}
SKIPPED = {("qwen2", "p_mlp"), ("gpt2", "p_lstm"), ("gpt2", "multitask"), ("gpt2", "prefix_projection"), ("qwen2", "multitask")}
# Families whose windows, scaled embeddings or position tables concern virtual tokens.
MORE = [("mistral", "prompt"), ("gemma2", "prefix"), ("gemma2", "prompt"), ("gemma3_text", "prefix"), ("gemma3_text", "prompt"), ("opt", "prompt"),
        ("opt", "prefix"), ("gpt_neox", "prefix"), ("qwen3", "prefix"), ("phi3", "prefix"), ("roberta_sequence", "prompt"), ("roberta_sequence", "prefix")]


def open_model(root, family):
    if family.endswith("_sequence"):
        return transformers.AutoModelForSequenceClassification.from_pretrained(root / "encoders" / family, attn_implementation="eager").float().eval()
    return load(root / "families" / family)


def name_of(parameter):
    """The name that a trained parameter has here: as in the encoder's state_dict, or as in the file."""
    for prefix in ("prompt_encoder.default.", "base_model."):
        if parameter.startswith(prefix):
            return parameter.removeprefix(prefix).replace(".modules_to_save.default", "")
    raise SystemExit(parameter)


def forward(model, ids, tasks, **inputs):
    if tasks is not None:
        inputs["task_ids"] = tasks[: len(ids)]
    if not hasattr(model, "base_model_prepare_inputs_for_generation"):
        inputs["return_dict"] = True
    out = model(input_ids=ids, **inputs)
    logits = out.logits
    if logits.dim() == 3:
        logits = logits[:, -ids.shape[1]:]  # those of virtual tokens come first
    return logits, out.loss


def batches(key, family, tasks, model, prefix, sequence, out):
    plain = random_ids((3, 9), "prefixtuning", key)
    inputs = {"plain": (plain, None, None)}
    for side in ("right", "left"):
        if side == "left" and family.startswith("roberta") and not prefix:
            continue  # peft counts padding where there are embeddings in place of ids
        ids, mask = padded([9, 5, 2], side, model.config.pad_token_id, "prefixtuning", key)
        inputs[side] = (ids, mask, None)
        # transformers' windows count the padding between prefix and tokens, whatever the positions.
        if side == "left" and prefix and not sequence and not getattr(model.config, "sliding_window", None):
            inputs["placed"] = (ids, mask, (mask.cumsum(1) - 1).clamp(min=0))
    for kind, (ids, mask, positions) in inputs.items():
        with torch.no_grad():
            logits, _ = forward(model, ids, tasks, attention_mask=mask, **({} if positions is None else {"position_ids": positions}))
        out |= {f"{kind}_ids": ids, f"{kind}_logits": logits}
        out |= {} if mask is None else {f"{kind}_mask": mask}
        if kind == "left" and family.startswith("opt"):
            positions = (mask.cumsum(1) - 1).clamp(min=0)  # as OPT has them by itself
        out |= {} if positions is None else {f"{kind}_positions": positions}


def clear_prompt(model, key, length, tasks):
    """A prompt whose next ids lead clearly, and those ids."""
    for attempt in range(100):
        prompt = random_ids((length,), "prefixtuning", "generate", key, length, attempt)
        extra = {} if tasks is None else {"task_ids": tasks[:1]}
        with torch.no_grad():
            run = model.generate(input_ids=prompt[None], attention_mask=torch.ones_like(prompt[None]), generation_config=GREEDY,
                                 return_dict_in_generate=True, output_scores=True, **extra)
        best = torch.cat(run.scores).topk(2, dim=-1).values
        if (best[:, 0] - best[:, 1]).min().item() > MIN_GAP:
            new = run.sequences[0, length:]
            if len(new) != NEW:
                raise SystemExit(f"{key}: {len(new)} new ids")
            return prompt, new
    raise SystemExit(f"{key}: no prompt of {length} ids whose choices are clear")


def make(root, family, case):
    key = f"{family}-{case}"
    config_class, options = CASES[case]
    sequence = family.endswith("_sequence")
    folder = fresh(root / "prefixtuning" / key)
    task = "SEQ_CLS" if sequence else "CAUSAL_LM"
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(open_model(root, family), config_class(task_type=task, num_virtual_tokens=N, **options)).eval()
    adapter = model.peft_config["default"]
    adapter.base_model_name_or_path = f"{'encoders' if sequence else 'families'}/{family}"
    encoder = model.prompt_encoder["default"]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                x = torch.from_numpy(rng("prefixtuning", key, name).standard_normal(tuple(p.shape))).to(p.dtype)
                p.copy_(0.5 * x + (1 if "task_cols" in name else 0))
    save(model, folder)
    saved = load_file(folder / "adapter_model.safetensors")
    if len(list(encoder.parameters())) > 1 and case != "multitask":
        write_tensors(folder / "prompt_encoder.safetensors", encoder.state_dict())
    trained = {name_of(n): p for n, p in model.named_parameters() if p.requires_grad}
    trainable, everything = model.get_nb_trainable_parameters()
    info = dict(model=adapter.base_model_name_or_path, case=case, sequence=sequence, trainable=trainable, all=everything, printed=printed(model),
                saved={k: list(v.shape) for k, v in saved.items()})

    tasks = torch.tensor([2, 0, 1]) if case == "multitask" else None
    out = {} if tasks is None else {"tasks": tasks}
    batches(key, family, tasks, model, case.startswith("prefix"), sequence, out)
    ids, mask = out["right_ids"], out["right_mask"]
    if sequence:
        labels = torch.tensor([1, 0, 2])
    else:
        labels = torch.where(mask.bool(), ids, IGNORE)
        labels[:, 0] = IGNORE  # peft would have the last virtual token of a prompt predict it
    _, loss = forward(model, ids, tasks, attention_mask=mask, labels=labels)
    loss.backward()
    out |= {"labels": labels, "loss": loss}
    out |= {"grad." + n: p.grad.clone() for n, p in trained.items()}
    before = {n: p.detach().clone() for n, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), **ADAMW)
    optimizer.step()
    out |= {"step." + n: p.detach().clone() for n, p in trained.items()}
    with torch.no_grad():
        for n, p in trained.items():
            p.copy_(before[n])
    if not sequence:
        model.base_model.generation_config = GREEDY
        for i, length in enumerate((7, 1, 4)):
            out[f"prompt.{i}"], out[f"new.{i}"] = clear_prompt(model, key, length, tasks)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = open_model(root, family)(ids, attention_mask=mask).logits
        if (bare - out["right_logits"]).abs().max() < 0.02:
            raise SystemExit(f"{key}: the adapter changes nothing")
        read_back = PeftModel.from_pretrained(open_model(root, family), folder).eval()
        again, _ = forward(read_back, ids, tasks, attention_mask=mask)
        torch.testing.assert_close(again, out["right_logits"], rtol=1e-5, atol=1e-5)
    write_json(folder / "info.json", info)
    write_tensors(folder / "golden.safetensors", out)
    print(f"{key:36} loss {loss.item():.4f}  {list(info['saved'].items())[0]}", flush=True)


def main(root):
    warnings.filterwarnings("ignore", message="Position ids are not supported")
    for family in MODELS:
        for case in CASES:
            if (family, case) not in SKIPPED:
                make(root, family, case)
    for family, case in MORE:
        make(root, family, case)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
