"""EfficientNet-Lite0 elsewhere, from the same tensors: a torch.nn module, and an ONNX graph."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import nn

STAGES = (
    (1, 1, 3, 1, 16), (2, 6, 3, 2, 24), (2, 6, 5, 2, 40), (3, 6, 3, 2, 80),
    (3, 6, 5, 1, 112), (4, 6, 5, 2, 192), (1, 6, 3, 1, 320),
)  # fmt: skip
"""Repeats, expansion, size, stride and channels (Tan and Le 2019, table 1)."""
EPSILON = 1e-3
Tensors = Mapping[str, torch.Tensor]


def zeros(length: int, size: int, stride: int) -> tuple[int, int]:
    """(before, after), as TensorFlow pads."""
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


class Same(nn.Conv2d):
    """A convolution without bias; with stride 1 it pads by itself."""

    def __init__(self, before: int, after: int, size: int, stride: int = 1, groups: int = 1):
        padding = size // 2 if stride == 1 else 0
        super().__init__(before, after, size, stride, padding, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride[0] > 1:
            rows, columns = (zeros(length, self.kernel_size[0], self.stride[0]) for length in x.shape[2:])
            x = nn.functional.pad(x, (*columns, *rows))
        return super().forward(x)


class Block(nn.Module):
    """An inverted residual."""

    def __init__(self, before: int, after: int, expand: int, size: int, stride: int):
        super().__init__()
        between = before * expand
        self.expands, self.adds = expand != 1, stride == 1 and before == after
        if self.expands:
            self._expand_conv = Same(before, between, 1)
            self._bn0 = nn.BatchNorm2d(between, EPSILON)
        self._depthwise_conv = Same(between, between, size, stride, between)
        self._bn1 = nn.BatchNorm2d(between, EPSILON)
        self._project_conv = Same(between, after, 1)
        self._bn2 = nn.BatchNorm2d(after, EPSILON)
        self._relu = nn.ReLU6(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self._relu(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self._relu(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class Lite0(nn.Module):
    """Images [B, 3, Y, X] -> means of the last map [B, 1280]."""

    def __init__(self, tensors: Tensors):
        super().__init__()
        self._conv_stem, self._bn0 = Same(3, 32, 3, 2), nn.BatchNorm2d(32, EPSILON)
        blocks, before = [], 32
        for repeats, expand, size, stride, after in STAGES:
            for k in range(repeats):
                blocks.append(Block(before, after, expand, size, stride if k == 0 else 1))
                before = after
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = Same(320, 1280, 1), nn.BatchNorm2d(1280, EPSILON)
        self._relu = nn.ReLU6(inplace=True)
        self.load_state_dict({name: one for name, one in tensors.items() if not name.startswith("_fc")})
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self._relu(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return self._relu(self._bn1(self._conv_head(x))).mean((2, 3))


class Graph:
    """The same as ONNX: norms folded into the convolutions, ReLU6 as Clip, as ORT fuses them best."""

    def __init__(self, tensors: Tensors, side: int):
        self.tensors, self.side = ({name: one.numpy().astype(np.float64) for name, one in tensors.items()}, side)
        self.nodes, self.constants = [], []
        self.limits = [self._constant("least", np.zeros(())), self._constant("most", np.full((), 6.0))]
        self._write()

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def _conv(self, x: str, name: str, norm: str, stride: int = 1, linear: bool = False) -> str:
        scale, bias, mean, var = (
            self.tensors[f"{norm}.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        factor = scale / np.sqrt(var + EPSILON)
        kernel = self.tensors[f"{name}.weight"]
        size, (before, after) = kernel.shape[-1], zeros(self.side, kernel.shape[-1], stride)
        made = f"conv{len(self.nodes)}"
        weight = self._constant(f"{made}_weight", kernel * factor[:, None, None, None])
        offset = self._constant(f"{made}_bias", bias - mean * factor)
        node = helper.make_node(
            "Conv", [x, weight, offset], [made], kernel_shape=[size, size], strides=[stride, stride],
            pads=[before, before, after, after], group=len(kernel) if "depthwise" in name else 1,
        )  # fmt: skip
        self.nodes.append(node)
        self.side = -(-self.side // stride)
        if linear:
            return made
        self.nodes.append(helper.make_node("Clip", [made, *self.limits], [f"{made}_clipped"]))
        return f"{made}_clipped"

    def _write(self) -> None:
        side, x, number, before = self.side, self._conv("images", "_conv_stem", "_bn0", 2), 0, 32
        for repeats, expand, _, stride, after in STAGES:
            for k in range(repeats):
                block, added, steps = f"_blocks.{number}", x, stride if k == 0 else 1
                x = self._conv(x, f"{block}._expand_conv", f"{block}._bn0") if expand != 1 else x
                x = self._conv(x, f"{block}._depthwise_conv", f"{block}._bn1", steps)
                x = self._conv(x, f"{block}._project_conv", f"{block}._bn2", linear=True)
                if steps == 1 and before == after:
                    self.nodes.append(helper.make_node("Add", [added, x], [f"{block}_sum"]))
                    x = f"{block}_sum"
                number, before = number + 1, after
        x = self._conv(x, "_conv_head", "_bn1")
        self.nodes.append(helper.make_node("GlobalAveragePool", [x], ["pooled"]))
        self.nodes.append(helper.make_node("Flatten", ["pooled"], ["vectors"]))
        info = helper.make_tensor_value_info
        images = info("images", onnx.TensorProto.FLOAT, ["B", 3, side, side])
        vectors = info("vectors", onnx.TensorProto.FLOAT, ["B", 1280])
        graph = helper.make_graph(self.nodes, "lite0", [images], [vectors], self.constants)
        opsets = [helper.make_opsetid("", 17)]
        self.model = helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def session(self, folder: Path, threads: int) -> onnxruntime.InferenceSession:
        """At onnxruntime's highest optimisation."""
        onnx.save(self.model, folder / "lite0.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        providers = ["CPUExecutionProvider"]
        return onnxruntime.InferenceSession(folder / "lite0.onnx", options, providers=providers)
