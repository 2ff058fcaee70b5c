"""The report on modules that resemble an op: what they look like, what does not fit, and what to change.

The models are small, with the structure and names of published code: Phi-3, GPT-2, ViT and ModernBERT in
transformers, LLaMA, and the attention of diffusion models.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hrm_kernels

DIM = 32


def linear(fan_in, fan_out, bias=False):
    return nn.Linear(fan_in, fan_out, bias=bias)


class Phi3Attention(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.config = SimpleNamespace(num_attention_heads=4, num_key_value_heads=groups)
        self.head_dim, self.groups = 8, groups
        self.o_proj, self.qkv_proj = linear(DIM, DIM), linear(DIM, DIM + 2 * groups * 8)

    def forward(self, hidden_states, position_embeddings, attention_mask, past_key_values=None, **kwargs):
        rows, positions, _ = hidden_states.shape
        q, k, v = (
            part.view(rows, positions, -1, 8).transpose(1, 2)
            for part in self.qkv_proj(hidden_states).split([DIM, self.groups * 8, self.groups * 8], -1)
        )
        cos, sin = (table.unsqueeze(1) for table in position_embeddings)
        q, k = (x * cos + torch.cat((-x[..., 4:], x[..., :4]), -1) * sin for x in (q, k))
        out = F.scaled_dot_product_attention(q, k, v, attention_mask, is_causal=True, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).flatten(2)), None


class Phi3MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj, self.down_proj, self.activation_fn = linear(DIM, 96), linear(48, DIM), nn.SiLU()

    def forward(self, hidden_states):
        gate, up = self.gate_up_proj(hidden_states).chunk(2, -1)
        return self.down_proj(up * self.activation_fn(gate))


class RMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(DIM)), 1e-6

    def forward(self, hidden_states):
        return self.weight * F.rms_norm(hidden_states, [DIM], eps=self.variance_epsilon)


class Phi3DecoderLayer(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.self_attn, self.mlp = Phi3Attention(groups), Phi3MLP()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(), RMSNorm()

    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        normed = self.input_layernorm(hidden_states)
        hidden_states = hidden_states + self.self_attn(normed, position_embeddings, attention_mask)[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class Conv1D(nn.Module):
    def __init__(self, fan_out, fan_in):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(fan_in, fan_out) / 9), nn.Parameter(torch.zeros(fan_out))

    def forward(self, x):
        return x @ self.weight + self.bias


class GPT2Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("bias", torch.ones(1, 1, 64, 64).tril().bool())
        self.num_heads, self.c_attn, self.c_proj = 4, Conv1D(3 * DIM, DIM), Conv1D(DIM, DIM)

    def forward(self, hidden_states, layer_past=None, use_cache=False):
        return (hidden_states, None)


class GPT2MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_fc, self.c_proj, self.act = Conv1D(4 * DIM, DIM), Conv1D(DIM, 4 * DIM), nn.GELU()

    def forward(self, hidden_states):
        return self.c_proj(self.act(self.c_fc(hidden_states)))


class GPT2Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = nn.LayerNorm(DIM), GPT2Attention(), nn.LayerNorm(DIM), GPT2MLP()

    def forward(self, hidden_states):
        hidden_states = hidden_states + self.attn(self.ln_1(hidden_states))[0]
        return hidden_states + self.mlp(self.ln_2(hidden_states))


class ViTSelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_attention_heads = 4
        self.query, self.key, self.value = (linear(DIM, DIM, bias=True) for _ in range(3))

    def forward(self, hidden_states, head_mask=None):
        return (hidden_states,)


class Dense(nn.Module):
    def __init__(self, fan_in, fan_out):
        super().__init__()
        self.dense = linear(fan_in, fan_out, bias=True)

    def forward(self, hidden_states):
        return self.dense(hidden_states)


class ViTLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.ModuleDict({"attention": ViTSelfAttention(), "output": Dense(DIM, DIM)})
        self.intermediate, self.output = Dense(DIM, 4 * DIM), Dense(4 * DIM, DIM)
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(DIM), nn.LayerNorm(DIM)

    def forward(self, hidden_states, head_mask=None):
        return hidden_states


class ModernBertAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads, self.Wqkv, self.Wo, self.out_drop = 4, linear(DIM, 3 * DIM), linear(DIM, DIM), nn.Identity()

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        rows, positions, _ = hidden_states.shape
        q, k, v = self.Wqkv(hidden_states).view(rows, positions, 3, 4, 8).transpose(1, 3).unbind(2)
        out = F.scaled_dot_product_attention(q, k, v, attention_mask)
        return (self.Wo(out.transpose(1, 2).flatten(2)), None)


class ModernBertMLP(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.Wi, self.act, self.drop, self.Wo = linear(DIM, 96), act, nn.Dropout(0.0), linear(48, DIM)

    def forward(self, hidden_states):
        x, gate = self.Wi(hidden_states).chunk(2, -1)
        return self.Wo(self.drop(self.act(x) * gate))


class LlamaAttention(nn.Module):
    def __init__(self, groups=2):
        super().__init__()
        self.num_heads, self.num_key_value_heads = 4, groups
        self.q_proj, self.o_proj = linear(DIM, DIM), linear(DIM, DIM)
        self.k_proj, self.v_proj = linear(DIM, 8 * groups), linear(DIM, 8 * groups)

    def forward(self, hidden_states):
        return hidden_states


class Named(nn.Module):
    """Linear layers with these names and sizes."""

    def __init__(self, heads=None, **linears):
        super().__init__()
        if heads:
            self.heads = heads
        for name, layer in linears.items():
            setattr(self, name, layer if isinstance(layer, nn.Module) else linear(*layer))

    def forward(self, x):
        return x


def kept(model):
    return hrm_kernels.patch(model).kept


def test_phi3():
    report = hrm_kernels.patch(Phi3DecoderLayer(groups=2))
    assert report.replaced == {
        "mlp": "swiglu", "input_layernorm": "add_rms_norm", "post_attention_layernorm": "add_rms_norm",
    }  # fmt: skip
    assert report.kept == {
        "": "it looks like a block (mlp, self_attn), but self_attn does not fit (see self_attn); "
        "input_layernorm, post_attention_layernorm have parameters; add_rms_norm has neither weight nor bias",
        "self_attn": "it looks like attention, but qkv_proj has 64 rows: 4 query heads share 2 key and value heads "
        "(grouped-query attention), which rope_attention does not support; repeat the rows of each for its query "
        "heads, 96 in total",
    }
    reason = kept(Phi3Attention(groups=4))[""]
    assert reason == "its forward returns a tuple; the ops return one tensor"


def test_gpt2():
    report = kept(GPT2Block())
    assert "it looks like a block (attn, mlp), but attn does not fit (see attn); mlp does not" in report[""]
    assert "ln_1, ln_2 have parameters" in report[""]
    transposed = "(Conv1D) stores its weight as [in, out] and has a bias, expected [out, in] and no bias"
    assert report["attn"] == f"it looks like attention, but c_attn {transposed}; c_proj {transposed}"
    assert report["mlp"].startswith(
        "it looks like an MLP without gate (c_fc, c_proj), which no op computes; c_fc (Conv1D)"
    )
    assert set(report) == {"", "attn", "mlp"}  # their reasons name the layers inside
    reason = "it is a linear layer that stores its weight as [in, out] (Conv1D), not [out, in]"
    assert kept(nn.Sequential(Conv1D(DIM, DIM))) == {"0": reason}


def test_vit():
    report = kept(nn.Sequential(ViTLayer()))
    reason = report["0.attention.attention"]
    assert reason.startswith(
        "it looks like attention, but its projections are separate (query, key, value); pack their weights into one "
        "qkv_proj [3 D, D], q first, then k, then v; query has a bias, and the ops take none"
    )
    assert "it has no output projection; expected o_proj" in reason
    assert "how many heads" not in reason
    assert list(report) == ["0.attention.attention"]


def test_modernbert():
    attention, mlp = ModernBertAttention(), ModernBertMLP(nn.GELU())
    assert kept(attention)[""] == "its forward returns a tuple; the ops return one tensor"
    reason = kept(mlp)[""]
    assert reason.startswith("it computes something else: output differs by") and reason.endswith("; it has act=GELU")
    assert hrm_kernels.patch(ModernBertMLP(nn.SiLU())).replaced == {"": "swiglu"}


def test_llama():
    reason = kept(LlamaAttention())[""]
    assert reason == (
        "it looks like attention, but its projections are separate (q_proj, k_proj, v_proj); pack their weights into "
        "one qkv_proj [3 D, D], q first, then k, then v; k_proj has 16 rows and q_proj 32: query heads share key and "
        "value heads (grouped-query attention), which rope_attention does not support; repeat the rows of each for its "
        "query heads"
    )
    assert "grouped" not in kept(LlamaAttention(4))[""]
    causal = LlamaAttention()
    causal.is_causal = True
    assert "it is causal, which no op computes: it keeps its own attention" in kept(causal)[""]
    uneven = kept(Named(w1=(DIM, 48), w2=(48, DIM), w3=(DIM, 32)))[""]
    shapes = "w1 is [48, 32], w3 [32, 32] and w2 [32, 48]"
    assert uneven == f"it looks like SwiGLU, but {shapes}, expected [I, D] twice and [D, I]"


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (
            lambda: Named(4, to_q=(DIM, DIM), to_k=(DIM, DIM), to_v=(DIM, DIM), to_out=(DIM, DIM)),
            "separate (to_q, to_k, to_v); pack their weights into one qkv_proj [3 D, D], q first, then k, then v, and "
            "name to_out o_proj",
        ),
        (
            lambda: Named(4, to_q=(DIM, DIM), to_kv=(DIM, 64), to_out=nn.Sequential(linear(DIM, DIM), nn.Dropout(0.1))),
            "to_out is torch.nn.modules.container.Sequential (with 0, 1), expected a layer with only a floating",
        ),
        (lambda: Named(None, q=(DIM, DIM), k=(DIM, DIM), v=(DIM, DIM)), "it does not say how many heads it has"),
        (
            lambda: Named(4, inward=(DIM, 96), outward=(DIM, DIM)),
            "it looks like attention with projections inward and outward; name them qkv_proj and o_proj",
        ),
        (
            lambda: Named(None, expand=(DIM, 96), shrink=(48, DIM)),
            "it looks like SwiGLU with projections expand and shrink; name them gate_up_proj and down_proj",
        ),
        (lambda: Named(None, fc1=(DIM, 64), fc2=(64, DIM)), "an MLP without gate (fc1, fc2), which no op computes"),
        (lambda: Named(None, Wi=(DIM, 64), Wo=(64, DIM)), "an MLP without gate (Wi is [64, 32] and Wo [32, 64])"),
        (
            lambda: Named(4, qkv=(DIM, 96), proj=linear(DIM, DIM, bias=True)),
            "it looks like attention, but proj has a bias, and the ops take none; create it with bias=False",
        ),
    ],
)
def test_names_and_packing(module, reason):
    assert reason in kept(module())[""]


def test_modules_of_other_kinds_are_not_mentioned():
    """Convolutions, classifiers, embeddings and single layers do not appear in the report."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Embedding(5, 8), nn.LSTM(8, 8), nn.LayerNorm(8), nn.Linear(8, 16)
    )
    assert str(hrm_kernels.patch(model)) == "no module of this model resembles an op"
