"""Bottleneck adapters made by AdapterHub's own package on the tiny models.

    bottleneck.py OUT_DIR     reads OUT_DIR/{encoders,families}, writes OUT_DIR/bottleneck/

It needs requirements-adapters.txt before other packages on the path (PYTHONPATH), since AdapterHub's adapters wants
an older transformers than the other scripts; that one must give the logits that the models' fixtures have.

bottleneck/MODEL-CASE/ holds what model.save_adapter writes (adapter_config.json, adapter.safetensors, and for
classifiers head_config.json and model_head.safetensors), info.json, and golden.safetensors: ids, mask, labels,
logits, loss, and by PyTorch's names grad.NAME and step.NAME (one step of AdamW). bottleneck/bert-stack has two
adapters, one on top of the other, in folders of their own. bottleneck/MODEL-flex has one of AdapterHub's own heads and
only logits. bottleneck/activations.safetensors has each non-linearity's values and derivatives.
"""
import json
import pathlib
import shutil
import sys
import tempfile

from common import fresh, random_ids, rng, write_json, write_tensors
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

here = str(pathlib.Path(__file__).resolve().parent)
sys.path[:] = [p for p in sys.path if p != here]  # a script of this folder is called adapters, too
import adapters
from adapters import composition
from adapters.methods.modeling import Activation_Function_Class

ADAMW = dict(lr=0.01, betas=(0.9, 0.999), eps=1e-3, weight_decay=0.0)
NAME = "task"
BERT = "encoders/bert_sequence"
ACTIVATIONS = ["relu", "swish", "silu", "gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "gelu_accurate", "gelu_10",
               "quick_gelu", "leakyrelu", "leaky_relu", "linear", "mish", "relu2", "relu6", "sigmoid", "tanh", "laplace"]

Houlsby, Pfeiffer, Parallel = adapters.DoubleSeqBnConfig, adapters.SeqBnConfig, adapters.ParBnConfig

# model, case, configuration
CASES = [
    (BERT, "houlsby", Houlsby(reduction_factor=4)),
    (BERT, "pfeiffer", Pfeiffer(reduction_factor=4)),
    (BERT, "parallel", Parallel(reduction_factor=4)),
    (BERT, "scaled_parallel", Parallel(reduction_factor=4, scaling="learned")),
    (BERT, "parallel_norms", Parallel(reduction_factor=8, mh_adapter=True, ln_before=True, ln_after=True, original_ln_after=False, scaling="channel")),
    (BERT, "norms", Pfeiffer(reduction_factor=4, ln_before=True, ln_after=True, non_linearity="gelu")),
    (BERT, "norm_residual", Houlsby(reduction_factor=8, ln_after=True, adapter_residual_before_ln=True, scaling=0.5)),
    (BERT, "plus", adapters.AdapterPlusConfig(reduction_factor=4, stochastic_depth=0.0)),
    (BERT, "post_add", Pfeiffer(reduction_factor=4, residual_before_ln="post_add", non_linearity="tanh", mh_adapter=True)),
    (BERT, "residual_after_ln", Pfeiffer(reduction_factor=8, residual_before_ln=False, non_linearity="leakyrelu", scaling="learned")),
    (BERT, "no_norm_after", Houlsby(reduction_factor=16, original_ln_after=False, non_linearity="gelu_new")),
    (BERT, "reductions", Houlsby(reduction_factor={"0": 2.5, "default": 100}, output_adapter=False)),
    (BERT, "leave_out", Houlsby(reduction_factor=8, leave_out=[0], non_linearity="quick_gelu")),
    ("encoders/distilbert_sequence", "houlsby", Houlsby(reduction_factor=8)),
    ("encoders/roberta_sequence", "pfeiffer", Pfeiffer(reduction_factor=8)),
    ("encoders/xlm_roberta_sequence", "parallel", Parallel(reduction_factor=8)),
    ("encoders/albert_sequence", "houlsby", Houlsby(reduction_factor=8)),
    ("encoders/albert_sequence", "post_add", Pfeiffer(reduction_factor=8, mh_adapter=True, residual_before_ln="post_add")),
    ("encoders/albert_sequence", "parallel", Parallel(reduction_factor=8, mh_adapter=True)),
    ("families/llama", "houlsby", Houlsby(reduction_factor=16)),
    ("families/llama", "pfeiffer", Pfeiffer(reduction_factor=16)),
    ("families/llama", "scaled_parallel", Parallel(reduction_factor=16, scaling="learned", mh_adapter=True)),
    ("families/llama", "plus", adapters.AdapterPlusConfig(reduction_factor=16, stochastic_depth=0.0)),
    ("families/mistral", "pfeiffer", Pfeiffer(reduction_factor=16)),
    ("families/qwen2", "houlsby", Houlsby(reduction_factor=16, residual_before_ln=False, original_ln_before=True)),
    ("families/qwen3", "parallel", Parallel(reduction_factor=16)),
    ("families/gpt2", "pfeiffer", Pfeiffer(reduction_factor=16)),
]


def short(model):
    return model.split("/")[1].removesuffix("_sequence")


def load(root, model):
    """The tiny model, whose configuration transformers 5 wrote, in the older transformers."""
    with tempfile.TemporaryDirectory() as tmp:
        shutil.copytree(root / model, tmp, dirs_exist_ok=True)
        path = pathlib.Path(tmp, "config.json")
        config = json.loads(path.read_text())
        rope = config.pop("rope_parameters", None) or {}
        if rope.get("rope_type", "default") != "default":
            raise SystemExit(f"{model}: no default positions")
        path.write_text(json.dumps(config | {k: v for k, v in rope.items() if k == "rope_theta"}))
        kind = hf.AutoModelForSequenceClassification if model.startswith("encoders") else hf.AutoModelForCausalLM
        base = kind.from_pretrained(tmp, attn_implementation="eager").float().eval()
    base.config._name_or_path = base.name_or_path = model
    golden = load_file(root / model / "golden.safetensors")
    with torch.no_grad():
        if "right_ids" in golden and model.startswith("encoders"):
            got, want = base(golden["right_ids"].long(), attention_mask=golden["right_mask"].long()).logits, golden["right_logits"]
        else:
            got, want = base(golden["input_ids"].long()).logits, golden["logits"]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    adapters.init(base)
    return base


def batch(base, model, key):
    if not model.startswith("encoders"):
        ids = random_ids((2, 12), "bottleneck", key)
        labels = ids.clone()
        labels[:, :3] = -100
        return dict(input_ids=ids, labels=labels)
    ids, mask = torch.full((3, 10), base.config.pad_token_id), torch.zeros(3, 10, dtype=torch.long)
    for row, length in enumerate([10, 6, 3]):
        ids[row, :length], mask[row, :length] = random_ids(length, "bottleneck", key, row).clamp(min=4), 1
    return dict(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 2, 1]))


def randomise(model, key):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.requires_grad:
                continue
            x = torch.from_numpy(rng("bottleneck", key, name).standard_normal(tuple(p.shape))).to(p.dtype)
            if ".adapters." not in name and "heads." not in name:
                p.add_(0.1 * x)
            elif "norm" in name and name.endswith("weight") or name.endswith("scaling") or name.endswith("adapter_down.0.weight") and p.dim() == 1:
                p.copy_(1 + 0.3 * x)
            else:
                p.copy_(0.3 * x)


def save(model, folder, name, with_head):
    """save_adapter; tensors that are one (a norm in two modules) are written twice, as its pickle has them,
    where safetensors' save_file would refuse."""
    model.save_adapter(str(folder), name, with_head=with_head)
    for old, new in (("pytorch_adapter.bin", "adapter.safetensors"), ("pytorch_model_head.bin", "model_head.safetensors")):
        if (folder / old).exists():
            state = torch.load(folder / old, weights_only=True)
            save_file({k: v.clone() for k, v in state.items()}, str(folder / new))
            (folder / old).unlink()
    for file in folder.glob("*.json"):
        file.write_text(file.read_text() + "\n")


def freeze_head(model, classifier):
    # train_adapter leaves whatever is no part of the trunk trainable: also a language model's own head.
    if not classifier:
        for name, p in model.named_parameters():
            if ".adapters." not in name:
                p.requires_grad = False


def evaluate(model, inputs):
    run = model(**inputs) if "attention_mask" in inputs else model(**inputs, use_cache=False)
    run.loss.backward()
    out = dict(ids=inputs["input_ids"], labels=inputs["labels"], logits=run.logits, loss=run.loss)
    if "attention_mask" in inputs:
        out["mask"] = inputs["attention_mask"]
    return out | {"grad." + n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def make(root, path, case, config):
    key = f"{short(path)}-{case}"
    classifier = path.startswith("encoders")
    folder, model = fresh(root / "bottleneck" / key), load(root, path)
    inputs = batch(model, path, key)
    plain = model(**inputs).logits.detach()
    model.add_adapter(NAME, config=config)
    model.train_adapter(NAME)
    freeze_head(model, classifier)
    model.eval()
    randomise(model, key)
    save(model, folder, NAME, classifier)
    out = evaluate(model, inputs)
    if (out["logits"] - plain).abs().max() < 0.02:
        raise SystemExit(f"{key}: the adapter changes nothing")
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    torch.optim.AdamW(trained.values(), **ADAMW).step()
    out |= {"step." + n: p for n, p in trained.items()}
    write_json(folder / "info.json", dict(model=path, case=case, trainable=sum(p.numel() for p in trained.values())))
    write_tensors(folder / "golden.safetensors", out)
    print(f"{key:36} loss {out['loss'].item():.4f}", flush=True)


# The base with a head in its own form, and what AdapterHub's head with the same layers is made with.
FLEX = [
    (BERT, "Bert", dict(layers=2)),
    ("encoders/roberta_sequence", "Roberta", dict(layers=2)),
    ("encoders/distilbert_sequence", "DistilBert", dict(layers=2, activation_function="relu")),
    ("encoders/albert_sequence", "Albert", dict(layers=1, use_pooler=True)),
    ("encoders/bert_token", "Bert", None),
]


def make_flex(root, path, class_name, head):
    key = path.split("/")[1].removesuffix("_sequence") + "-flex"
    folder, config = fresh(root / "bottleneck" / key), json.loads((root / path / "config.json").read_text())
    model = getattr(adapters, class_name + "AdapterModel").from_pretrained(root / path, attn_implementation="eager").float()
    model.config._name_or_path = model.name_or_path = path
    model.add_adapter(NAME, config=Pfeiffer(reduction_factor=8))
    labels = dict(num_labels=3, id2label={int(i): name for i, name in config["id2label"].items()})
    if head is None:
        model.add_tagging_head(NAME, **labels)
    else:
        model.add_classification_head(NAME, **labels, **head)
    model.train_adapter(NAME)
    model.active_head = NAME
    model.eval()
    randomise(model, key)
    save(model, folder, NAME, True)
    inputs = batch(model, path, key)
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    write_json(folder / "info.json", dict(model=path, case="flex"))
    write_tensors(folder / "golden.safetensors", dict(ids=inputs["input_ids"], mask=inputs["attention_mask"], labels=inputs["labels"], logits=logits))


def make_stack(root):
    key = "bert-stack"
    folder, model = fresh(root / "bottleneck" / key), load(root, BERT)
    inputs = batch(model, BERT, key)
    for name, config in (("first", Houlsby(reduction_factor=8)), ("second", Pfeiffer(reduction_factor=4))):
        model.add_adapter(name, config=config)
    model.train_adapter(composition.Stack("first", "second"))
    model.eval()
    for p in model.classifier.parameters():
        p.requires_grad = False
    randomise(model, key)
    for name in ("first", "second"):
        save(model, folder / name, name, False)
    write_json(folder / "info.json", dict(model=BERT, case="stack"))
    write_tensors(folder / "golden.safetensors", evaluate(model, inputs))


def make_activations(root):
    x = torch.from_numpy(rng("activations").standard_normal(40) * 3).float()
    x[:4] = torch.tensor([0.25, -12.0, 12.0, 6.5])
    out = {"x": x}
    for name in ACTIVATIONS:
        at = x.clone().requires_grad_()
        y = Activation_Function_Class(name)(at)
        y.sum().backward()
        out |= {name: y, name + ".grad": at.grad}
    write_tensors(root / "bottleneck" / "activations.safetensors", out)


def main(root):
    for case in CASES:
        make(root, *case)
    for case in FLEX:
        make_flex(root, *case)
    make_stack(root)
    make_activations(root)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
