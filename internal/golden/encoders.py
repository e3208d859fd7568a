"""Tiny random encoders with each head, the logits transformers gives them, and one training step of peft.

    encoders.py OUT_DIR     writes OUT_DIR/encoders/CASE/{config.json, model.safetensors, golden.safetensors}
                            and OUT_DIR/encoders/FAMILY_lora/{adapter_config.json, adapter_model.safetensors, golden.safetensors}

Every case proves while it is made that all of its weights change its logits.
"""
import json
import pathlib
import sys

from common import VOCAB, fresh, random_ids, rng, write_tensors
import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model
import transformers as hf

HEADS = {"masked": "ForMaskedLM", "sequence": "ForSequenceClassification", "token": "ForTokenClassification"}
LABELS = ["yes", "no", "maybe"]
COMMON = dict(vocab_size=VOCAB, max_position_embeddings=40, id2label=dict(enumerate(LABELS)),
              label2id={name: i for i, name in enumerate(LABELS)})
BERT = COMMON | dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, hidden_dropout_prob=0.0,
                     attention_probs_dropout_prob=0.0)
DISTIL = COMMON | dict(dim=16, hidden_dim=24, n_layers=2, n_heads=2, dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0)
ALBERT = BERT | dict(embedding_size=8, num_hidden_layers=3, classifier_dropout_prob=0.0)
FAMILIES = {"bert": ("Bert", BERT), "roberta": ("Roberta", BERT | dict(type_vocab_size=1)), "distilbert": ("DistilBert", DISTIL),
            "albert": ("Albert", ALBERT)}


def cases():
    for family, (name, arguments) in FAMILIES.items():
        for head, suffix in HEADS.items():
            yield f"{family}_{head}", name, name + suffix, arguments
    # The trunk alone, whose tensors lack the prefix.
    yield "bert_trunk", "Bert", "BertModel", {k: v for k, v in BERT.items() if "label" not in k}
    yield "xlm_roberta_sequence", "XLMRoberta", "XLMRobertaForSequenceClassification", BERT | dict(type_vocab_size=1, pad_token_id=3)
    yield "bert_untied_masked", "Bert", "BertForMaskedLM", BERT | dict(tie_word_embeddings=False, hidden_act="gelu_new", layer_norm_eps=1e-3)
    yield "albert_groups_masked", "Albert", "AlbertForMaskedLM", ALBERT | dict(num_hidden_layers=2, num_hidden_groups=2, inner_group_num=2, hidden_act="gelu")


def fill(model, key):
    with torch.no_grad():
        for name, p in model.named_parameters():
            x = rng("encoder", key, name).standard_normal(tuple(p.shape))
            if "norm" in name.lower() and name.endswith("weight"):
                x = 1 + 0.3 * x
            elif p.dim() == 1 or "embeddings" in name:
                x = 0.5 * x
            else:
                x = 0.4 * x
            p.copy_(torch.from_numpy(x).to(p.dtype))


def padded(lengths, side, pad, *key):
    n = max(lengths)
    ids, mask = torch.full((len(lengths), n), pad), torch.zeros(len(lengths), n, dtype=torch.long)
    for row, length in enumerate(lengths):
        at = slice(n - length, n) if side == "left" else slice(0, length)
        ids[row, at], mask[row, at] = random_ids(length, *key, side, row).clamp(min=4), 1
    return ids, mask


def scores(model, **inputs):
    with torch.no_grad():
        out = model(**inputs)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


def answers(model, case, family):
    """The batches of a case and the model's logits."""
    out = {}
    pad = model.config.pad_token_id
    typed = getattr(model.config, "type_vocab_size", 0) > 1
    for side in ("right", "left"):
        ids, mask = padded([12, 7, 3], side, pad, case)
        out |= {f"{side}_ids": ids, f"{side}_mask": mask, f"{side}_logits": scores(model, input_ids=ids, attention_mask=mask)}
    ids, types = out["right_ids"], (torch.arange(12) % 3 == 1).long().expand(3, 12).contiguous()
    if typed:
        out |= {"types": types, "types_logits": scores(model, input_ids=ids, attention_mask=out["right_mask"], token_type_ids=types)}
    # Ours count from 0 in every family, RoBERTa's own from pad_token_id + 1.
    positions = (torch.arange(12) * 2 + 1).expand(3, 12).contiguous()
    first = pad + 1 if "oberta" in family else 0
    plain = ids.clamp(min=4)
    out |= {"plain_ids": plain, "plain_logits": scores(model, input_ids=plain), "positions": positions,
            "positions_logits": scores(model, input_ids=plain, position_ids=positions + first)}
    return out


def make(root, case, config_class, model_class, arguments):
    config = getattr(hf, config_class + "Config")(**arguments)
    config._attn_implementation = "eager"
    model = getattr(hf, model_class)(config).float().eval()
    fill(model, case)
    model.tie_weights()
    folder = fresh(root / case)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)

    out = answers(model, case, config_class)
    prove(case, model, out["plain_ids"], out["plain_logits"])
    write_tensors(folder / "golden.safetensors", out)
    print(f"{case:24} {sum(f.stat().st_size for f in folder.iterdir()) / 1024:5.0f} KiB", flush=True)


def prove(case, model, ids, expected):
    for name, p in model.named_parameters():
        # Not the pooler of the trunk alone, nor the keys' bias, which adds the same to all scores of a query.
        if "Model" == type(model).__name__[-5:] and "pooler" in name or name.endswith(("key.bias", "k_lin.bias")) or "predictions.bias" in name \
                and not model.config.tie_word_embeddings:
            continue
        with torch.no_grad():
            kept = p.clone()
            p.copy_(torch.from_numpy(rng("prove", name).standard_normal(tuple(p.shape))).to(p.dtype))
            moved = (scores(model, input_ids=ids) - expected).abs().max().item()
            p.copy_(kept)
        if moved < 1e-3:
            raise SystemExit(f"{case}: weight {name} moves the logits by only {moved:.2g}")


def train_step(root, family, targets, base_name=None):
    """One AdamW step of LoRA on query and value and of a copy of the classifier in a folder, FAMILY_sequence by default."""
    base_name = base_name or f"{family}_sequence"
    base = hf.AutoModelForSequenceClassification.from_pretrained(root / base_name, attn_implementation="eager", dtype=torch.float32)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, lora_alpha=8, target_modules=targets, lora_dropout=0.0)
    model = get_peft_model(base, config)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(torch.from_numpy(0.3 * rng(f"{family}_lora", name).standard_normal(tuple(p.shape))).to(p.dtype))
    folder = fresh(root / f"{family}_lora")
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = base_name
    settings["target_modules"] = sorted(settings["target_modules"])
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")

    ids, mask = padded([12, 7, 3, 9], "right", base.config.pad_token_id, f"{family}_lora")
    labels = torch.tensor([0, 2, 1, 2])
    model.eval()  # no dropout is set anyway
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    run = model(input_ids=ids, attention_mask=mask, labels=labels)
    run.loss.backward()
    short = lambda name: name.removeprefix("base_model.model.").replace(".modules_to_save.default", "").replace(".default", "")
    out = {"ids": ids, "mask": mask, "labels": labels, "loss": run.loss.reshape(1), "logits": run.logits}
    out |= {"gradient/" + short(n): p.grad.clone() for n, p in trained.items()}
    optimizer.step()
    out |= {"after/" + short(n): p for n, p in trained.items()}
    write_tensors(folder / "golden.safetensors", out)


def main(root):
    for case in cases():
        make(root / "encoders", *case)
    for family in FAMILIES:
        train_step(root / "encoders", family, ["q_lin", "v_lin"] if family == "distilbert" else ["query", "value"])


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
