"""LN tuning, trainable tokens, OFT and BOFT made by peft: see methods.py.

    methods_orthogonal.py OUT_DIR     reads OUT_DIR/families, writes OUT_DIR/methods/MODEL-CASE/
"""
import pathlib
import sys

from methods import make
from peft import LNTuningConfig, LoraConfig, TrainableTokensConfig

CAUSAL = dict(task_type="CAUSAL_LM")


def ln_tuning(root):
    def case(family, name, **options):
        make(root, family, "ln_tuning_" + name, LNTuningConfig(**CAUSAL, **options), drawn=(), quiet=True)  # peft warns of norms

    case("llama", "default")
    case("qwen2", "default")
    case("llama", "regex", target_modules=r".*layers\.1\..*layernorm", exclude_modules=["input_layernorm"])
    case("llama", "save_head", target_modules=["norm"], modules_to_save=["lm_head"])


TOKENS = [40, 5, 9, 17, 30, 33, 62, 3]


def tokens(root):
    def case(family, name, **options):
        make(root, family, "tokens_" + name, TrainableTokensConfig(**CAUSAL, **options), drawn=(), noise=0.3)

    case("llama", "default", token_indices=TOKENS)
    case("llama_tied", "default", token_indices=TOKENS)
    case("llama", "both", token_indices=TOKENS[:3], target_modules=["embed_tokens", "lm_head"])


def lora_tokens(root):
    def case(family, name, indices, **options):
        config = LoraConfig(**CAUSAL, r=2, lora_alpha=6, target_modules=["q_proj"], trainable_token_indices=indices, **options)
        make(root, family, "lora_tokens_" + name, config, noise=0.3, quiet=bool(options))

    case("llama", "list", TOKENS)
    case("llama_tied", "list", TOKENS)
    case("llama", "names", {"embed_tokens": TOKENS, "lm_head": TOKENS[:4]})
    # peft warns that there is nothing to tie besides the tokens.
    case("llama_tied", "names", {"embed_tokens": TOKENS, "lm_head": TOKENS}, ensure_weight_tying=True)


def main(root):
    ln_tuning(root)
    tokens(root)
    lora_tokens(root)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
