"""LN tuning, trainable tokens, OFT and BOFT made by peft: see methods.py.

    methods_orthogonal.py OUT_DIR     reads OUT_DIR/families, writes OUT_DIR/methods/MODEL-CASE/
"""
import pathlib
import sys

from methods import make
import torch
from peft import BOFTConfig, LNTuningConfig, LoraConfig, OFTConfig, TrainableTokensConfig
from peft.tuners.boft import layer as boft_layer

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


def forward(model, step=None):
    """A forward pass, in which COFT projects the values of its adapter in place."""
    with torch.no_grad():
        model(torch.tensor([[3, 4]]))


def oft(root):
    def case(family, name, noise=0.1, before=None, after_step=None, **options):
        config = OFTConfig(**CAUSAL, **dict(oft_block_size=8) | options)
        make(root, family, "oft_" + name, config, drawn=(), noise=noise, before=before, after_step=after_step, quiet="adjusted" in name)

    case("llama", "neumann")
    case("llama_tied", "exact", target_modules=["q_proj", "down_proj"], use_cayley_neumann=False, noise=0.3)
    case("llama", "exact_large", target_modules=["o_proj"], use_cayley_neumann=False, oft_block_size=32, noise=0.3)
    case("llama", "blocks", r=4, oft_block_size=0, num_cayley_neumann_terms=3)
    case("llama", "series", num_cayley_neumann_terms=7, target_modules=["q_proj"])
    case("qwen2", "bias", bias="oft_only", target_modules=["q_proj", "o_proj"], use_cayley_neumann=False)
    case("llama", "shared", block_share=True, use_cayley_neumann=False, modules_to_save=["lm_head"])
    # peft adjusts the block size to 16, since 20 divides neither 48 inputs nor 32.
    case("llama", "adjusted", oft_block_size=20, target_modules=["down_proj", "up_proj"], noise=0.03)
    case("llama", "coft", coft=True, eps=0.5, before=forward, after_step=forward)
    case("llama", "coft_shared", coft=True, eps=0.4, block_share=True, before=forward, after_step=forward, use_cayley_neumann=False)


class BlockDiagonal:
    """What peft's CUDA kernel for BOFT computes; without it peft ignores boft_n_butterfly_factor."""

    @staticmethod
    def forward(blocks):
        return [torch.stack([torch.block_diag(*factor) for factor in blocks])]

    @staticmethod
    def backward(gradient, blocks):
        size = blocks.shape[-1]
        return [torch.stack([torch.stack([g[k * size:(k + 1) * size, k * size:(k + 1) * size] for k in range(blocks.shape[1])]) for g in gradient])]


def boft(root):
    def case(family, name, noise=0.2, **options):
        make(root, family, "boft_" + name, BOFTConfig(**CAUSAL, **options), drawn=(), noise=noise)

    kernel = boft_layer.get_fbd_cuda
    boft_layer.get_fbd_cuda = lambda: BlockDiagonal
    case("llama", "plain", target_modules=["q_proj", "down_proj"])
    case("llama", "butterfly", boft_block_size=4, boft_n_butterfly_factor=3, target_modules=["o_proj"])
    case("llama_tied", "number", boft_block_size=0, boft_block_num=8, boft_n_butterfly_factor=2, target_modules=["v_proj", "up_proj"])
    case("qwen2", "bias", boft_block_size=8, bias="boft_only", target_modules=["q_proj", "o_proj"], layers_to_transform=[1])
    boft_layer.get_fbd_cuda = kernel


def main(root):
    ln_tuning(root)
    tokens(root)
    lora_tokens(root)
    oft(root)
    boft(root)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
