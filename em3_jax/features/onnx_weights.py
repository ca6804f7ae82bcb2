"""The tensors of an ONNX file by the names that its model had in PyTorch; nothing of its graph is run."""

from pathlib import Path

import numpy as np

from em3_jax.core.errors import UserError

_MADE_UP = "onnx::"  # PyTorch's exporter calls so what it has transposed or folded


def read_onnx(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a file.

    One that the exporter gave a name of its own is called after its only reader: "/a/b/MatMul" reads
    "a.b.weight", transposed back to [out, in], and "/a/b/Concat_6" reads "a.b.Concat_6".

    Raises:
      UserError: it is no ONNX file, or keeps tensors in other files.
    """
    import onnx  # an extra
    from onnx import numpy_helper

    try:
        graph = onnx.load(file, load_external_data=False).graph
        if not graph.node:
            raise ValueError("it has no graph")
        readers: dict[str, list] = {}
        for node in graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        found = {}
        for tensor in graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise ValueError(f"{tensor.name} is in another file")
            array, name = numpy_helper.to_array(tensor), tensor.name
            if name.startswith(_MADE_UP) and len(readers.get(name, [])) == 1:
                (node,) = readers[name]
                path, _, last = node.name.strip("/").rpartition("/")
                is_kernel = node.op_type == "MatMul" and array.ndim == 2
                name = f"{path.replace('/', '.')}.{'weight' if is_kernel else last}"
                array = array.T if is_kernel else array
            if name in found:
                raise ValueError(f"two of its tensors are called {name}")
            found[name] = array
    except Exception as error:  # a damaged file can provoke any of them
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{file}: not an ONNX file of plain tensors ({reason}); take another copy") from error
    return found
