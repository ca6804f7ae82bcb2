"""Low-rank adaptation of an FC layer (EM3, section 3.3.2; Hu et al. 2021, arXiv:2106.09685)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

STOP_GRADIENTS = ("output", "weights")


class LoRA(NamedTuple):
    """How FC layers are adapted.

    Attributes:
      rank: r of the adapters; 0 = none, a plain layer.
      stop_gradient: "output": sg(W x) + W_b (W_a x), eq. 9. The gradient reaches the layers below through the adapter alone,
        and the frozen product needs nothing kept for the backward pass (the adapter needs the layer's input; what saves memory
        is `fusion.chunks`, see benchmarks/NOTES.md). "weights": W stands still, but the gradient passes
        through it, as in classical LoRA.
    """

    rank: int = 0
    stop_gradient: str = "output"


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[S, D] x kernel, of x [S, E] and kernel [E, D].

    Its gradient is that of a product, with the kernel's computed as (g^T x)^T and XLA kept from writing it as x^T g, which takes
    2.5 times as long on a CPU where E is much larger than D, as for features.
    """
    return _in_f32(x, kernel)


def _in_f32(x: jax.Array, y: jax.Array) -> jax.Array:
    """x y, added up in f32 and rounded once: as matrix units do, and on CPUs bf16 takes twice as long otherwise."""
    dtype = jnp.result_type(x, y)
    return jnp.matmul(x, y, preferred_element_type=jnp.promote_types(dtype, jnp.float32)).astype(dtype)


def _product_forward(x, kernel):
    return _in_f32(x, kernel), (x, kernel)


def _product_backward(saved, gradient):
    x, kernel = saved
    of_kernel = jax.lax.optimization_barrier(_in_f32(gradient.T, x))
    return _in_f32(gradient, kernel.T), of_kernel.T


product.defvjp(_product_forward, _product_backward)


class Adapted(NamedTuple):
    """The map x W + b of an FC layer, and beside it x A B of its adapter where there is one (eq. 9).

    Called with x [S, E] it gives [S, D].

    Attributes:
      kernel: W [E, D].
      bias: b [D].
      down, up: A [E, r] and B [r, D]; None without an adapter.
      passes: whether the gradient passes through W to x; through A and B it does in any case.
    """

    kernel: jax.Array
    bias: jax.Array
    down: jax.Array | None = None
    up: jax.Array | None = None
    passes: bool = True

    def __call__(self, x: jax.Array) -> jax.Array:
        y = product(x if self.passes else jax.lax.stop_gradient(x), self.kernel) + self.bias
        return y if self.down is None or self.up is None else y + (x @ self.down) @ self.up

    def then(self, matrix: jax.Array) -> "Adapted":
        """The map of which the result is multiplied with `matrix` [D, K], as one of [E, K]."""
        up = None if self.up is None else self.up @ matrix
        return self._replace(kernel=self.kernel @ matrix, bias=self.bias @ matrix, up=up)

    def beside(self, other: "Adapted") -> "Adapted":
        """The map that gives the results of both, [D + D'], in one product; both are adapted or neither is."""
        side_by_side = lambda *arrays: jnp.concatenate(arrays, axis=-1)  # noqa: E731
        both = self._replace(kernel=side_by_side(self.kernel, other.kernel), bias=side_by_side(self.bias, other.bias))
        if self.down is None or self.up is None or other.down is None or other.up is None:
            return both
        up = jax.scipy.linalg.block_diag(self.up, other.up)
        return both._replace(down=side_by_side(self.down, other.down), up=up)


class LoRADense(nn.Module):
    """[*, E] -> [*, D]: an FC layer with an adapter of rank r beside it (eq. 9).

    Parameters are those of `nn.Dense`, and `lora_a` [E, r], `lora_b` [r, D] where there is an adapter. `lora_b` starts at
    zero, so that a fresh adapter changes nothing. The product is taken on one flat axis (on CPU 1.4 times faster than batched).

    Attributes:
      features: D.
      lora: of the adapter.
      kernel_init: of the kernel.
    """

    features: int
    lora: LoRA = LoRA()
    kernel_init: Callable = nn.initializers.lecun_normal()

    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        return self.map(width)(x.reshape(-1, width)).reshape(*x.shape[:-1], self.features)

    @nn.compact
    def map(self, width: int) -> Adapted:
        """The layer as a map of vectors [E] with E = `width`, to be joined with others."""
        rank = self.lora.rank
        kernel = self.param("kernel", self.kernel_init, (width, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if not rank:
            return Adapted(kernel, bias)
        kernel, bias = jax.lax.stop_gradient((kernel, bias))
        a = self.param("lora_a", nn.initializers.lecun_normal(), (width, rank))
        b = self.param("lora_b", nn.initializers.zeros, (rank, self.features))
        return Adapted(kernel, bias, a, b, passes=self.lora.stop_gradient == "weights")


def fresh(key: jax.Array, params: Any, rank: int) -> Any:
    """Adapters of an encoder that change nothing yet: `lora_a` [rows, r], `lora_b` [r, out] for each kernel.

    For kernels of dense layers [in, out], and of convolutions [Y, X, in, out], whose first axes are
    the rows, but not for depthwise ones, in which a column is a channel's whole window.

    Args:
      key: of the values of `lora_a`; `lora_b` is zero.
      params: of the encoder.
      rank: r.
    """
    flat, adapters = flax.traverse_util.flatten_dict(params), {}
    for k, (path, leaf) in enumerate(sorted(flat.items())):
        if path[-1] == "kernel" and (leaf.ndim == 2 or (leaf.ndim == 4 and leaf.shape[2] > 1)):
            shape = (leaf.size // leaf.shape[-1], rank)
            own = jax.random.fold_in(key, k)
            adapters[*path[:-1], "lora_a"] = nn.initializers.lecun_normal()(own, shape, jnp.float32)
            adapters[*path[:-1], "lora_b"] = jnp.zeros((rank, leaf.shape[-1]), jnp.float32)
    return flax.traverse_util.unflatten_dict(adapters)


def adapted(params: Any, adapters: Any | None) -> Any:
    """An encoder's parameters with kernel + lora_a lora_b in the place of each kernel that has an adapter, see `fresh`."""
    if not adapters:
        return params
    flat, beside = flax.traverse_util.flatten_dict(params), flax.traverse_util.flatten_dict(adapters)

    def one(path: tuple[str, ...], leaf: jax.Array) -> jax.Array:
        a, b = (beside.get((*path[:-1], name)) for name in ("lora_a", "lora_b"))
        if path[-1] != "kernel" or a is None:
            return leaf
        return leaf + jnp.matmul(a, b, precision="highest").reshape(leaf.shape)

    return flax.traverse_util.unflatten_dict({path: one(path, leaf) for path, leaf in flat.items()})


def merge(params: Any) -> Any:
    """The parameters of the same model without adapters, those of encoders too: kernel + lora_a lora_b in place of the three."""
    own = dict(params)
    adapters = own.pop("adapters", {})
    if adapters:
        own["encoders"] = {name: adapted(one, adapters.get(name)) for name, one in own["encoders"].items()}
    flat = flax.traverse_util.flatten_dict(own)
    merged = {}
    for path, leaf in flat.items():
        if path[-1] in ("lora_a", "lora_b"):
            continue
        a = flat.get((*path[:-1], "lora_a")) if path[-1] == "kernel" else None
        merged[path] = leaf if a is None else leaf + jnp.matmul(a, flat[*path[:-1], "lora_b"])
    return flax.traverse_util.unflatten_dict(merged)
