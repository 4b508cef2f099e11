"""LLaMA as transformers builds it, in the sizes and with the settings of QuEST's code base (paper.md, section 5).

transformers is imported inside the function: it takes seconds to load.  Weights are initialised here, none are fetched.
"""

from __future__ import annotations

from torch import nn

from fogzo.checks import check_sizes, positive
from fogzo.errors import UserError


def llama(
    *, layers: int, width: int, heads: int, vocabulary: int = 50304, sequence: int = 512, init_std: float = 0.02
) -> nn.Module:
    """Return a decoder with untied head: token ids (B, T) → ``.logits`` (B, T, vocabulary).

    RMS norm, rotary positions, SwiGLU, causal attention by ``scaled_dot_product_attention``; no biases, no dropout, no
    key-value cache.  Call it as ``model(input_ids=tokens, use_cache=False).logits``.

    Args:
        layers: decoder blocks.
        width: of the residual stream; the gated layer is 8/3 as wide, rounded up to a multiple of 256.
        heads: attention heads, each ``width / heads`` wide, which must be an even whole number.
        vocabulary: number of tokens, of inputs and outputs alike.
        sequence: the longest sequence that the model is meant for, in tokens; a note, which the forward pass doesn't
            check: rotary positions have no table to run out of.
        init_std: standard deviation of the initial weights, those of embedding and head included.

    Raises:
        UserError: for sizes that are not possible or do not fit each other.
    """
    check_sizes(layers=layers, width=width, heads=heads, vocabulary=vocabulary, sequence=sequence)
    if width % heads:
        raise UserError(
            f"width={width} is not a multiple of heads={heads}, so the heads cannot share it evenly: "
            "choose a number of heads that divides the width"
        )
    if width // heads % 2:
        raise UserError(
            f"width={width} with heads={heads} makes heads {width // heads} wide, which is odd, and rotary positions "
            "turn pairs of coordinates: choose a width that is a multiple of 2 * heads"
        )
    if positive(init_std, "init_std") > 1:
        raise UserError(f"init_std={init_std} is not possible: give a positive number up to 1, such as 0.02")
    from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    # by a name for which transformers makes no mask: it makes one under torch.compile, which rules the fast kernels out
    AttentionInterface.register("causal_sdpa", sdpa_attention_forward)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=gated_width(width),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=sequence,
        initializer_range=float(init_std),
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        use_cache=False,
        # which token begins or ends a text is the data's affair; the defaults 1 and 2 are Meta's tokenizer's
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("causal_sdpa")
    return model


def gated_width(width: int, multiple: int = 256) -> int:
    """Return the width of the SwiGLU layer: 8/3 of ``width``, rounded up to a ``multiple``.

    >>> [gated_width(width) for width in (128, 384, 640, 1280)]
    [512, 1024, 1792, 3584]
    """
    return -(-8 * width // (3 * multiple)) * multiple
