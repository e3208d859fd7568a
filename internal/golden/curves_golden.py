"""Twenty training steps of peft adapters on fixed batches: loss, gradient norm, learning rate, final adapter.

    curves_golden.py OUT_DIR     reads OUT_DIR/families and OUT_DIR/lora, writes OUT_DIR/curves/CASE/

torch.optim.AdamW (betas 0.9, 0.999, eps 1e-8, weight decay 0.01), peak rate 5e-3, transformers' linear
schedule with 3 warm-up steps, clipping by the global norm, no dropout. With several micro-batches
each loss is the sum over its targets divided by the targets of the whole step, as Trainer does since
4.46. The loop is written out here and then compared with transformers.Trainer itself.
"""
import dataclasses
import pathlib
import sys
import tempfile

from adapters import adapter_tensors
from common import IGNORE, VOCAB, fresh, load, rng, write_json, write_tensors
import torch
from peft import PeftModel
from transformers import Trainer, TrainingArguments, get_scheduler

STEPS, PEAK, WARMUP, DECAY = 20, 5e-3, 3, 0.01
CYCLE = [17, 5, 42, 33, 8, 60, 21, 49]


@dataclasses.dataclass
class Case:
    adapter: str         # to start from
    micro: int = 1       # micro-batches per step
    rows: int = 4        # per micro-batch
    length: int = 12
    max_norm: float = 1.0


CASES = {
    "llama": Case("lora/llama-seven"),
    "llama_accum": Case("lora/llama-seven", micro=4, rows=2),
    "qwen3": Case("lora/qwen3-seven", max_norm=2.4),  # clips some steps and not others
}


def batches(name, case):
    """ids, labels and mask [STEPS, micro, rows, length]: ragged rows padded on the right with 0, -100 on
    padding and on a prompt of 1 to 4 tokens. The text is a cycle of eight tokens with noise: learnable."""
    g, length = rng("curve", name), case.length
    ids = torch.zeros(STEPS, case.micro, case.rows, length, dtype=torch.long)
    labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    for where in ((s, m, r) for s in range(STEPS) for m in range(case.micro) for r in range(case.rows)):
        n, prompt = int(g.integers(6, length + 1)), int(g.integers(1, 5))
        phase = int(g.integers(len(CYCLE)))
        row = [CYCLE[(phase + i) % len(CYCLE)] if g.random() < 0.95 else int(g.integers(3, VOCAB)) for i in range(n)]
        ids[where][:n], mask[where][:n] = torch.tensor(row), 1
        labels[where][prompt:n] = torch.tensor(row)[prompt:]
    return ids, labels, mask


def start(root, adapter):
    family = adapter.removeprefix("lora/").split("-")[0]
    model = load(root / "families" / family)
    return PeftModel.from_pretrained(model, root / adapter, is_trainable=True).train()


def run(model, case, ids, labels, mask):
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=PEAK, weight_decay=DECAY)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=WARMUP, num_training_steps=STEPS)
    log = dict(loss=[], grad_norm=[], lr=[], targets=[])
    for step in range(STEPS):
        count = int(labels[step][..., 1:].ne(IGNORE).sum())
        total = 0.0
        for m in range(ids.shape[1]):
            batch = dict(input_ids=ids[step, m], labels=labels[step, m], attention_mask=mask[step, m], use_cache=False)
            if ids.shape[1] > 1:
                batch["num_items_in_batch"] = torch.tensor(count)
            loss = model(**batch).loss
            loss.backward()
            total += loss.item()
        log["grad_norm"].append(torch.nn.utils.clip_grad_norm_(params, case.max_norm).item())
        log["loss"].append(total)
        log["lr"].append(optimizer.param_groups[0]["lr"])
        log["targets"].append(count)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return log


class InOrder(Trainer):
    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def check_with_trainer(root, case, ids, labels, mask, log, final):
    """The same numbers must come out of transformers' own Trainer."""
    rows = [dict(input_ids=i, labels=l, attention_mask=m) for i, l, m in
            zip(ids.flatten(0, 2), labels.flatten(0, 2), mask.flatten(0, 2))]
    with tempfile.TemporaryDirectory() as tmp:
        arguments = TrainingArguments(
            output_dir=tmp, per_device_train_batch_size=ids.shape[2], gradient_accumulation_steps=ids.shape[1],
            max_steps=STEPS, learning_rate=PEAK, warmup_steps=WARMUP, weight_decay=DECAY, max_grad_norm=case.max_norm,
            lr_scheduler_type="linear", logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
            use_cpu=True, optim="adamw_torch")
        model = start(root, case.adapter)
        trainer = InOrder(model=model, args=arguments, train_dataset=rows)
        trainer.remove_callback(next(c for c in trainer.callback_handler.callbacks if type(c).__name__ == "PrinterCallback"))
        trainer.train()
    history = [h for h in trainer.state.log_history if "grad_norm" in h]
    for mine, theirs in (("loss", "loss"), ("grad_norm", "grad_norm"), ("lr", "learning_rate")):
        torch.testing.assert_close(torch.tensor(log[mine]), torch.tensor([float(h[theirs]) for h in history]), rtol=1e-4, atol=1e-4)
    for name, t in adapter_tensors(model, "final.").items():
        torch.testing.assert_close(t.detach(), final[name].detach(), rtol=1e-4, atol=1e-5)


def make(root, name):
    case = CASES[name]
    folder = fresh(root / "curves" / name)
    ids, labels, mask = batches(name, case)
    model = start(root, case.adapter)
    log = run(model, case, ids, labels, mask)
    final = adapter_tensors(model, "final.")
    check_with_trainer(root, case, ids, labels, mask, log, final)
    if not (max(log["grad_norm"]) > case.max_norm and min(log["loss"]) < 0.8 * log["loss"][0]):
        raise SystemExit(f"{name}: clipping never acts or nothing is learnt: {log}")
    write_json(folder / "curve.json", log | dict(
        start=case.adapter, model="families/" + case.adapter.removeprefix("lora/").split("-")[0], steps=STEPS,
        micro_batches=case.micro, optimizer=dict(name="adamw", beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=DECAY),
        peak_lr=PEAK, schedule="linear", warmup_steps=WARMUP, max_grad_norm=case.max_norm))
    write_tensors(folder / "golden.safetensors", dict(ids=ids, labels=labels, mask=mask) | final)
    norms = [round(n, 2) for n in log["grad_norm"]]
    print(f"{name:12} loss {log['loss'][0]:.4f} -> {log['loss'][-1]:.4f}  gradient norms {min(norms)} to {max(norms)}", flush=True)


def main(root):
    for name in CASES:
        make(root, name)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
