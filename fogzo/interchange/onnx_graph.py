"""ONNX: packed whole numbers behind DequantizeLinear, in the graph that torch.onnx traces."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fogzo.errors import UserError
from fogzo.interchange.canonical import Exported, Size, check_fitted
from fogzo.interchange.coded import WAY_OUT, CodedTensor, coded_tensors, needed, pack
from fogzo.quantize import bake
from fogzo.quantizers import LSQ
from fogzo.quantizers.inputs import NAME, InputQuantizer

CONTAINERS = (2, 4, 8)  # bits of ONNX's integer types
OPSET, OPSET_INT2 = 21, 25  # the first with INT4, and with INT2


def export_onnx(model: nn.Module, path: str | Path, example: Tensor) -> Exported:
    """Write a quantized network as an ONNX file, for onnxruntime and what else reads that.

    Weights become INT2, INT4 or INT8 (the smallest that holds the codes) behind DequantizeLinear, with the scale of the
    tensor or of each output channel; LSQ's activations a QuantizeLinear and DequantizeLinear in front of their layer.

    Args:
        model: quantized by ``fogzo.quantize_model``; it is left as it is.
        path: of the file.
        example: inputs, shape (B, ...); the file takes any B, and of text this one length.

    Returns:
        The sizes before and after, printable.

    Raises:
        UserError: for what ONNX cannot hold exactly: QuEST's rotation and its scales of activations, scales in fp64.
    """
    onnx, path = needed("onnx"), Path(path)
    whole = [tensor.integers("ONNX") for tensor in coded_tensors(model)]
    steps = dict(_steps(model))
    smallest = min(_container(tensor.bits) for tensor in whole)
    traced = _trace(model, example, OPSET_INT2 if smallest == 2 else OPSET)
    sizes = tuple(_pack(traced.graph, tensor) for tensor in whole)
    for layer, quantizer in steps.items():
        _quantize_input(traced.graph, layer, quantizer)
    traced.ir_version = onnx.helper.find_min_ir_version_for(traced.opset_import)
    onnx.checker.check_model(traced)
    check_fitted(model)
    partial = path.with_name(path.name + ".tmp")  # an earlier file stays whole until this one is
    try:
        onnx.save(traced, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    before = sum(tensor.nbytes for tensor in _plain(model).state_dict().values())
    return Exported(path, before, path.stat().st_size, sizes)


def export_plain_onnx(model: nn.Module, path: str | Path, example: Tensor) -> None:
    """Write the same network with its quantized weights as plain fp32 numbers: what sizes and times compare with."""
    needed("onnx").save(_trace(model, example, OPSET), path)


def _steps(model: nn.Module) -> Iterator[tuple[str, LSQ]]:
    for name, module in model.named_modules():
        if isinstance(module, InputQuantizer):
            layer = name.removesuffix(NAME).removesuffix(".")
            if not isinstance(module.quantizer, LSQ):
                kind = type(module.quantizer).__name__
                raise UserError(f"the inputs of {layer}: ONNX cannot hold {kind}'s changing scales: {WAY_OUT}")
            yield layer, module.quantizer


def _plain(model: nn.Module) -> nn.Module:
    """Return a copy with the quantized weights as plain numbers, and no quantizers."""
    plain = bake(copy.deepcopy(model)).eval()
    for layer in plain.modules():
        if hasattr(layer, NAME):
            layer.add_module(NAME, nn.Identity())
    return plain


def _trace(model: nn.Module, example: Tensor, opset: int) -> Any:
    needed("onnxscript")
    program = torch.onnx.export(
        _plain(model),
        (example,),
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=opset,
        optimize=False,  # which would fold weights, and with them their names, away
        verbose=False,
    )
    assert program is not None
    traced: Any = program.model_proto
    for node in traced.graph.node:  # where in which file it comes from
        del node.metadata_props[:]
    del traced.graph.value_info[:]
    return traced


def _container(bits: int) -> int:
    return next(size for size in CONTAINERS if size >= bits)


def _pack(graph: Any, tensor: CodedTensor) -> Size:
    """Put the whole numbers in the place of a weight: the node that computes the weight takes over its name."""
    helper, types = needed("onnx").helper, needed("onnx").TensorProto
    weight = next((initializer for initializer in graph.initializer if initializer.name == tensor.name), None)
    if weight is None:
        raise UserError(f"{tensor.name} is not in the graph that torch.onnx makes of the example: does forward use it?")
    graph.initializer.remove(weight)
    bits = _container(tensor.bits)
    kind = types.DataType.Value(f"INT{bits}")
    packed = pack(tensor.codes().to(torch.int8).view(torch.uint8) & (2**bits - 1), bits)  # as two's complement
    # with one more dimension, since onnxruntime takes a MatMul right behind DequantizeLinear of 8 bits for one whose
    # inputs it may round to 8 bits too
    shape, name = tensor.index.shape, tensor.name
    codes = helper.make_tensor(f"{name}.codes", kind, (*shape, 1), packed.numpy().tobytes(), raw=True)
    scale = _floats(f"{name}.scale", tensor.scale.reshape(-1 if tensor.scale.numel() > 1 else ()))
    axis = max(range(tensor.scale.dim()), key=tensor.scale.size, default=0)  # of a Conv1D's channels it is the second
    last = helper.make_tensor(f"{name}.last", types.INT64, (1,), [len(shape)])
    graph.initializer.extend([codes, scale, last])
    graph.node.insert(0, helper.make_node("Squeeze", [f"{name}.wide", last.name], [name]))
    graph.node.insert(0, helper.make_node("DequantizeLinear", [codes.name, scale.name], [f"{name}.wide"], axis=axis))
    return Size(tensor.name, bits, 4 * tensor.index.numel(), packed.nbytes + tensor.scale.nbytes)


def _quantize_input(graph: Any, layer: str, quantizer: LSQ) -> None:
    """Round what the node of ``layer`` gets, which is found by its weight."""
    helper, types = needed("onnx").helper, needed("onnx").TensorProto
    weight, step = f"{layer}.weight".lstrip("."), f"{layer}.{NAME}.step".lstrip(".")
    users = list(_users(graph, weight))
    if len(users) != 1:
        raise UserError(f"{layer} is used {len(users)} times, and ONNX would need a step for each: skip it")
    ((position, node),) = users
    with torch.no_grad():
        scale = quantizer.scale(torch.empty(0)).cpu()
    graph.initializer.append(_floats(step, scale))
    kind = types.INT8 if quantizer.signed else types.UINT8  # onnxruntime moves no smaller ones
    graph.initializer.append(helper.make_tensor(f"{step}.zero", kind, (), [0]))
    limits = [_floats(f"{step}.{side}", getattr(quantizer.grid, side) * scale) for side in ("lo", "hi")]
    graph.initializer.extend(limits)
    # clipped last: right behind DequantizeLinear onnxruntime would round the bias to steps of α_x α_w, which are coarse
    chain = [
        helper.make_node("QuantizeLinear", [node.input[0], step, f"{step}.zero"], [f"{step}.codes"]),
        helper.make_node("DequantizeLinear", [f"{step}.codes", step, f"{step}.zero"], [f"{step}.wide"]),
        helper.make_node("Clip", [f"{step}.wide", *(limit.name for limit in limits)], [f"{step}.rounded"]),
    ]
    node.input[0] = f"{step}.rounded"
    for new in reversed(chain):
        graph.node.insert(position, new)


def _users(graph: Any, weight: str) -> Iterator[tuple[int, Any]]:
    """Return the nodes that multiply by ``weight``, transposed or not, and their positions."""
    for position, node in enumerate(graph.node):
        if weight in node.input and node.op_type == "Transpose":
            yield from _users(graph, node.output[0])
        elif weight in node.input and node.op_type != "Shape":  # from which the exporter makes a missing bias
            yield position, node


def _floats(name: str, values: Tensor) -> Any:
    return needed("onnx").numpy_helper.from_array(values.detach().cpu().numpy(), name)
