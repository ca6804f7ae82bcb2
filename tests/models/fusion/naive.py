"""The fusion modules' parts item by item in numpy, where masked tokens are simply not there, and content to try them on."""

import numpy as np

S, D, Q, H, FFN = 5, 8, 2, 2, 12
SIZES = {"image": (3, 6), "text": (4, 5)}  # modality -> (N, E)
NO_IMAGE, NOTHING = 1, 3  # items


def make_content():
    random = np.random.default_rng(0)
    tokens = {m: (3 * random.standard_normal((S, *size))).astype(np.float32) for m, size in SIZES.items()}
    mask = {m: random.random((S, count)) < 0.6 for m, (count, _) in SIZES.items()}
    mask["image"][[NO_IMAGE, NOTHING]] = mask["text"][NOTHING] = False
    mask["text"][0] = mask["image"][0] = True
    return tokens, mask


def norm(x, scale=1.0, bias=0.0):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attention(x, context, p):
    """Multi-head attention, head by head; with nothing to read, the output's bias is all there is."""
    query = np.split(dense(x, p["query"]), H, axis=1)
    key, value = (np.split(dense(context, p[name]), H, axis=1) for name in ("key", "value"))
    heads = []
    for q, k, v in zip(query, key, value, strict=True):
        weight = np.exp(q @ k.T / np.sqrt(D / H))
        heads.append(weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-300) @ v)
    return dense(np.concatenate(heads, axis=1), p["output"])


def transformer_layer(x, context, p):
    """LN(x + attention), then LN(x + FFN): post-norm, as in BERT and so in the paper's TRM."""
    x = norm(x + attention(x, context, p["attention"]), **p["attention_norm"])
    return norm(x + dense(gelu(dense(x, p["ffn_in"])), p["ffn_out"]), **p["ffn_norm"])


def valid_tokens(p, tokens, mask, item: int, modality: str) -> np.ndarray:
    """[n, D] the valid tokens of an item's modality after its FC layer and embedding, in f64."""
    valid = tokens[modality][item][mask[modality][item]].astype(np.float64)
    return dense(valid, p["modalities"][f"{modality}_fc"]) + p["modalities"][f"{modality}_embedding"]
