"""The reference run: stories260K fine-tuned by peft on two tasks, with the very batches, for Go to repeat.

    stories_reference.py ASSETS OUT [TASK...]     TASK: tinyshakespeare, gsm8k (default: both)

Reads ASSETS/stories260K/hf, ASSETS/tinyshakespeare/input.txt and ASSETS/gsm8k/train.jsonl; writes for each task
    OUT/TASK/batches.safetensors   ids, labels [steps, 8, 96] int32; eval_ids, eval_labels [n, 8, 96] int32
    OUT/TASK/initial/              the adapter before the first step (peft's folder; B is zero)
    OUT/TASK/final/                the adapter after the last
    OUT/TASK/result.json           losses, options, seconds
Nothing of it is committed: the texts and the model are other people's.

Data. The text is one stream of tokens: tinyshakespeare as it is; GSM8K as BOS, question, newline, answer for
each row. The last tenth (of characters, of rows) is held out. A training row is 96 tokens from a random place
of the first nine tenths; the evaluation rows are 96-token pieces spread evenly over the last tenth. Every token
of a row is a label (the model shifts them: 95 targets a row).
"""
import itertools
import json
import pathlib
import sys
import time

from adapters import save
from common import ALL_SEVEN, fresh, load, rng, write_json, write_tensors
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

ROWS, LENGTH, EVAL_BATCHES, RATE, SEED = 8, 96, 16, 2e-3, 0
STEPS = {"tinyshakespeare": 100, "gsm8k": 150}


def streams(assets, task, tokenizer):
    """Token ids of the first nine tenths and of the last tenth."""
    if task == "tinyshakespeare":
        text = (assets / "tinyshakespeare" / "input.txt").read_text()
        cut = len(text) * 9 // 10
        return tokenizer(text[:cut]).input_ids, tokenizer(text[cut:]).input_ids
    rows = [json.loads(line) for line in (assets / "gsm8k" / "train.jsonl").read_text().splitlines()]
    ids = tokenizer([r["question"] + "\n" + r["answer"] for r in rows]).input_ids
    cut = len(ids) * 9 // 10
    return list(itertools.chain(*ids[:cut])), list(itertools.chain(*ids[cut:]))


def make_batches(assets, task, tokenizer):
    train, held_out = (torch.tensor(s) for s in streams(assets, task, tokenizer))
    at = rng("stories", task, SEED).integers(0, len(train) - LENGTH + 1, (STEPS[task], ROWS))
    ids = torch.stack([torch.stack([train[i:i + LENGTH] for i in row]) for row in at])
    at = torch.linspace(0, len(held_out) - LENGTH, EVAL_BATCHES * ROWS).long()
    held = torch.stack([held_out[i:i + LENGTH] for i in at]).view(EVAL_BATCHES, ROWS, LENGTH)
    return ids, held


def evaluate(model, batches):
    """Mean token loss; every batch has as many targets."""
    model.eval()
    with torch.no_grad():
        total = sum(model(input_ids=b, labels=b, use_cache=False).loss.item() for b in batches)
    model.train()
    return total / len(batches)


def reference(assets, out, task):
    source = assets / "stories260K" / "hf"
    ids, held = make_batches(assets, task, AutoTokenizer.from_pretrained(source))
    folder = fresh(out / task)
    write_tensors(folder / "batches.safetensors", dict(ids=ids, labels=ids, eval_ids=held, eval_labels=held))
    torch.manual_seed(SEED)
    options = dict(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=ALL_SEVEN)
    model = get_peft_model(load(source), LoraConfig(task_type="CAUSAL_LM", **options)).train()
    save(model, folder / "initial", save_embedding_layers=False)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=RATE)  # betas 0.9, 0.999; eps 1e-8; weight decay 0.01
    before, losses, seconds = evaluate(model, held), [], 0.0
    held_losses = {0: before}
    for step, batch in enumerate(ids, 1):
        start = time.perf_counter()
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds += time.perf_counter() - start
        if step % 50 == 0:
            held_losses[step] = evaluate(model, held)
    after = held_losses[STEPS[task]]
    save(model, folder / "final", save_embedding_layers=False)
    write_json(folder / "result.json", dict(
        task=task, steps=STEPS[task], rows=ROWS, length=LENGTH, lora=options, trainable=sum(p.numel() for p in params),
        optimizer=dict(name="AdamW", lr=RATE, schedule="constant", **{k: optimizer.defaults[k] for k in ("betas", "eps", "weight_decay")}),
        clipping=None, held_out="last tenth", eval_rows=EVAL_BATCHES * ROWS, loss_before=before, loss_after=after,
        held_out_loss={str(k): v for k, v in held_losses.items()}, train_loss=losses,
        train_loss_every_10={str(i): losses[i - 1] for i in range(10, len(losses) + 1, 10)},
        seconds=round(seconds, 2), ms_per_step=round(1e3 * seconds / STEPS[task], 1), threads=torch.get_num_threads()))
    print(f"{task:16} held-out loss {before:.4f} -> {after:.4f} in {STEPS[task]} steps, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    for name in sys.argv[3:] or STEPS:
        reference(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), name)
