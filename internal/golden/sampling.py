"""What transformers' logits processors leave of a few distributions.

    sampling.py OUT_DIR     writes OUT_DIR/sampling/sampling.json

Each case has one row of logits, the ids that came before, the options of generate, and what its processors make of
them in generate's own order: the ids that may be drawn and their probabilities. The logits are drawn anew until no
decision hangs on rounding: neighbours of the top-k border differ, and the top-p border is not near a partial sum.
"""
import pathlib
import sys

from common import fresh, rng, write_json
import torch
from transformers import GenerationConfig, LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

VOCAB, MARGIN = 24, 1e-3
CASES = {
    "plain": dict(),
    "temperature": dict(temperature=0.7),
    "hot": dict(temperature=2.5),
    "cold": dict(temperature=0.05),
    "top_k": dict(top_k=5),
    "top_k_one": dict(top_k=1),
    "top_k_all": dict(top_k=100),
    "top_p": dict(top_p=0.8),
    "top_p_small": dict(top_p=0.01),
    "top_p_high": dict(top_p=0.999),
    "top_k_top_p": dict(top_k=8, top_p=0.7),
    "penalty": dict(repetition_penalty=1.4),
    "reward": dict(repetition_penalty=0.7),
    "all": dict(repetition_penalty=1.3, temperature=0.8, top_k=10, top_p=0.9),
    "all_hot": dict(repetition_penalty=1.8, temperature=1.7, top_k=12, top_p=0.95),
}


def processors(o):
    """The processors of generate in its order (GenerationMixin._get_logits_processor)."""
    out = LogitsProcessorList()
    if "repetition_penalty" in o:
        out.append(RepetitionPenaltyLogitsProcessor(o["repetition_penalty"]))
    if "temperature" in o:
        out.append(TemperatureLogitsWarper(o["temperature"]))
    if "top_k" in o:
        out.append(TopKLogitsWarper(top_k=o["top_k"]))
    if "top_p" in o:
        out.append(TopPLogitsWarper(top_p=o["top_p"]))
    return out


def check_order():
    """generate builds the same list."""
    from transformers import LlamaConfig, LlamaForCausalLM
    tiny = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                        num_attention_heads=1, num_key_value_heads=1))
    o = dict(CASES["all"])
    config = GenerationConfig(do_sample=True, **o)
    built = tiny._get_logits_processor(config, input_ids_seq_length=3)
    names = [type(p).__name__ for p in built]
    if names != [type(p).__name__ for p in processors(o)]:
        raise SystemExit(f"generate's order is {names}")


def clear(scores, o):
    """Whether float rounding cannot change what is kept."""
    without = processors({k: v for k, v in o.items() if k not in ("top_k", "top_p")})
    x = without(PRIOR[None], scores[None].clone())[0].sort(descending=True).values
    k = min(o.get("top_k", VOCAB), VOCAB)
    if k < VOCAB and x[k - 1] - x[k] < MARGIN:
        return False
    sums = x[:k].softmax(-1).cumsum(-1)
    return "top_p" not in o or (sums - o["top_p"]).abs().min() > MARGIN / 10


def case(name, o):
    for attempt in range(100):
        scores = torch.from_numpy(2 * rng("sampling", name, attempt).standard_normal(VOCAB)).float()
        if clear(scores, o):
            break
    else:
        raise SystemExit(f"{name}: no logits whose decisions are clear")
    p = processors(o)(PRIOR[None], scores[None].clone())[0].softmax(-1)
    ids = p.nonzero()[:, 0].tolist()
    print(f"{name:12} {len(ids):3} ids", flush=True)
    return dict(options=o, prior=PRIOR.tolist(), logits=scores.tolist(), ids=ids, p=p[ids].tolist())


PRIOR = torch.tensor([3, 7, 7, 0, 21, 11])


def main(root):
    check_order()
    write_json(fresh(root / "sampling") / "sampling.json", {n: case(n, o) for n, o in CASES.items()})


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
