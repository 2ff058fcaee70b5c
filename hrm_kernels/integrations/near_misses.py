"""Explain why the ops cannot compute a module that resembles one of theirs: other names, other packing, extra parts."""

from typing import Any

from torch import nn

_LETTER_FORMS = ("{}_proj", "to_{}", "{}", "W{}", "w{}", "W_{}", "w_{}", "{}_lin", "linear_{}", "{}_linear", "fc_{}")
_SEPARATE = (
    *(tuple(form.format(letter) for letter in "qkv") for form in _LETTER_FORMS),
    *((form.format("q"), form.format("kv")) for form in _LETTER_FORMS),
    *(tuple(form.format(word) for word in ("query", "key", "value")) for form in ("{}", "{}_proj", "{}_projection")),
)
"""Names of separate projections of queries, keys and values."""
_WITHOUT_GATE = (
    *(("c_fc", "c_proj"), ("fc1", "fc2"), ("linear1", "linear2"), ("lin1", "lin2"), ("up_proj", "down_proj")),
    *(("dense_h_to_4h", "dense_4h_to_h"), ("fc_in", "fc_out"), ("wi", "wo"), ("Wi", "Wo"), ("w1", "w2")),
)

_HEADS = ("num_heads", "n_heads", "n_head", "nhead", "heads", "num_attention_heads")
_GROUPS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads")

_SUSPICIOUS = (
    *("window", "window_size", "sliding_window", "local_attention", "attention_window", "chunk_size"),
    *("causal", "is_causal", "softcap", "logit_cap", "attn_logit_softcapping", "clip", "clip_qkv", "limit"),
    *("alibi", "alibi_slopes", "relative_bias", "dropout", "dropout_p", "attention_dropout", "attn_dropout"),
    *("scale", "scaling", "act", "act_fn", "activation", "activation_fn", "hidden_act"),
)


def number_of_heads(module: nn.Module) -> int | None:
    return _number(module, _HEADS)


def expected_heads() -> str:
    return " or ".join(_HEADS)


def is_linear(module: Any) -> bool:
    """A leaf with a matrix ``weight`` of floating dtype and perhaps a vector ``bias``."""
    if not isinstance(module, nn.Module) or isinstance(module, nn.Embedding):
        return False
    leaf = next(module.children(), None) is None and not module._buffers
    weight = module._parameters.get("weight")
    if not leaf or type(weight) is not nn.Parameter or not set(module._parameters) <= {"weight", "bias"}:
        return False
    return weight.ndim == 2 and weight.is_floating_point()


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear layer stores its weight as ``[in, out]``: judged by its bias, or else by its class name."""
    weight, bias = module._parameters["weight"], module._parameters.get("bias")
    assert weight is not None
    rows, columns = weight.shape
    return type(module).__name__ == "Conv1D" or (bias is not None and rows != columns and bias.shape == (columns,))


def projection_reason(name: str, linear: nn.Module, biases: bool = False) -> str | None:
    """Return why the ops cannot use projection ``name``, or None. Some ops take ``biases``."""
    if not is_linear(linear):
        kind = f"{type(linear).__module__}.{type(linear).__name__}"
        members = [*dict(linear.named_children()), *linear._parameters, *linear._buffers]
        shown = f" (with {', '.join(members[:4])})" if members else ""
        return f"{name} is {kind}{shown}, expected a layer with only a floating parameter 'weight' [out, in]"
    if is_transposed(linear):
        bias = " and has a bias" if linear._parameters.get("bias") is not None else ""
        return f"{name} ({type(linear).__name__}) stores its weight as [in, out]{bias}, expected [out, in] and no bias"
    if not biases and getattr(linear, "bias", None) is not None:
        return f"{name} has a bias, and the ops take none; create it with bias=False"
    return None


def grouped_heads_reason(module: nn.Module, qkv: str, rows: int, columns: int, heads: int) -> str:
    """Return why a packed projection of ``rows`` rows does not fit ``heads`` heads of ``columns`` outputs together."""
    groups = _number(module, _GROUPS)
    width = columns // heads
    if groups is None and width and (rows - columns) % (2 * width) == 0:
        groups = (rows - columns) // (2 * width)
    if groups and groups != heads and rows == columns + 2 * groups * width:
        return (
            f"{qkv} has {rows} rows: {heads} query heads share {groups} key and value heads (grouped-query attention), "
            "which rope_attention does not support; repeat the rows of each for its query heads, "
            f"{3 * columns} in total"
        )
    return (
        f"{qkv} has {rows} rows, and the output projection {columns} columns; expected 3 times as many rows as "
        f"columns, and a number of columns that is a multiple of the {heads} heads"
    )


def near_miss_reason(module: nn.Module, out: tuple[str, ...]) -> str | None:
    """Return what ``module`` resembles under other names or another packing; None where it resembles no op.

    Args:
        out: known names of output projections.
    """
    children = dict(module.named_children())
    separate = next((names for names in _SEPARATE if all(is_projection(children.get(name)) for name in names)), None)
    if separate is not None:
        return _separate_attention_reason(module, separate, out)
    reason = _shape_reason(children, number_of_heads(module) is not None)
    if reason is not None:
        return reason
    pair = next((pair for pair in _WITHOUT_GATE if all(is_projection(children.get(name)) for name in pair)), None)
    if pair is not None:
        reasons = [reason for name in pair if (reason := projection_reason(name, children[name]))]
        return f"it looks like an MLP without gate ({', '.join(pair)}), which no op computes" + "".join(
            f"; {reason}" for reason in reasons
        )
    return None


def suspects(module: nn.Module) -> str:
    """Name attributes that may explain a different result, as ``"; it has window=8"``; an empty string without any."""
    found: dict[str, str] = {}
    for inner in module.modules():
        if isinstance(inner, nn.Dropout) and inner.p > 0:
            found["Dropout"] = f"{inner.p:g}"
        for name, value in ({name: inner.__dict__.get(name) for name in _SUSPICIOUS} | inner._modules).items():
            if name in _SUSPICIOUS and (shown := _shown(value)):
                found.setdefault(name, shown)
    return f"; it has {', '.join(f'{name}={value}' for name, value in found.items())}" if found else ""


def _shown(value: Any) -> str:
    """Format an attribute for a message; an empty string for values without effect."""
    if isinstance(value, nn.Module):
        shown = type(value).__name__
    elif isinstance(value, bool | int | float | str | tuple):
        shown = repr(value)[:40] if value else ""
    else:
        shown = getattr(value, "__name__", "")  # of a function
    return "" if shown.strip("'").lower() in ("silu", "swish") else shown


def _separate_attention_reason(module: nn.Module, names: tuple[str, ...], out: tuple[str, ...]) -> str:
    if getattr(module, "is_causal", False) is True:
        shown = ", ".join(names)
        return f"it looks like attention ({shown}); it is causal, which no op computes: it keeps its own attention"
    children = dict(module.named_children())
    reasons = [f"it looks like attention, but its projections are separate ({', '.join(names)})"]
    last = next((name for name in (*out, "to_out", "wo", "w_o", "out_lin", "fc_out") if name in children), None)
    rename = "" if last in (None, "o_proj") else f", and name {last} o_proj"
    reasons.append(f"pack their weights into one qkv_proj [3 D, D], q first, then k, then v{rename}")
    reasons += [
        reason for name in (*names, *([last] if last else [])) if (reason := projection_reason(name, children[name]))
    ]
    if last is None:
        reasons.append("it has no output projection; expected o_proj")
    rows = [children[name].weight.shape[0] for name in names if is_linear(children[name])]  # type: ignore[index, union-attr]
    if len(rows) == 3 and rows[1] < rows[0]:
        reasons.append(
            f"{names[1]} has {rows[1]} rows and {names[0]} {rows[0]}: query heads share key and value heads "
            "(grouped-query attention), which rope_attention does not support; repeat the rows of each for its "
            "query heads"
        )
    if number_of_heads(module) is None:
        reasons.append(f"it does not say how many heads it has; expected an attribute {expected_heads()}")
    return "; ".join(reasons)


def _shape_reason(children: dict[str, nn.Module], has_heads: bool) -> str | None:
    """Return what two projections resemble by their shapes, whatever their names are."""
    linears = {name: child for name, child in children.items() if is_linear(child)}
    if len(linears) != 2:
        return None
    (first, a), (second, b) = linears.items()
    (rows, width), (back, inner) = (
        linear.weight.shape[:: -1 if is_transposed(linear) else 1]  # type: ignore[index, union-attr]
        for linear in (a, b)
    )
    if width != back:
        return None
    if rows == 3 * inner and has_heads:
        kind, names = "attention", "qkv_proj and o_proj"
    elif rows == 2 * inner:
        kind, names = "SwiGLU", "gate_up_proj and down_proj"
    else:
        return None
    reasons = [reason for name, child in linears.items() if (reason := projection_reason(name, child))]
    return f"it looks like {kind} with projections {first} and {second}; name them {names}" + "".join(
        f"; {reason}" for reason in reasons
    )


def is_projection(child: Any) -> bool:
    """Whether ``child`` is a linear layer of any kind: with adapters, quantised, transposed."""
    if not isinstance(child, nn.Module) or isinstance(child, nn.Embedding):
        return False
    return is_linear(child) or all(hasattr(child, name) for name in ("in_features", "out_features"))


def _number(module: nn.Module, names: tuple[str, ...]) -> int | None:
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(owner, name, None)
            if type(value) is int and value > 0:
                return value
    return None
