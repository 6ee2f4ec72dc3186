"""Torch's tensors and data types as NumPy's and JAX's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .graph import Value
from .registry import Refused

_FLOAT32, _INT32 = np.dtype(np.float32), np.dtype(np.int32)

#: Data types of JAX for those of torch. Half precisions are computed in float32.
_DTYPES: dict[Any, np.dtype[Any]] = {
    torch.float32: _FLOAT32,
    torch.bfloat16: _FLOAT32,
    torch.float16: _FLOAT32,
    torch.float64: _FLOAT32,
    torch.int64: _INT32,
    torch.int32: _INT32,
    torch.int16: np.dtype(np.int16),
    torch.int8: np.dtype(np.int8),
    torch.uint8: np.dtype(np.uint8),
    torch.bool: np.dtype(np.bool_),
}

_WIDE = {torch.float64: "float64", torch.complex64: "complex64", torch.complex128: "complex128"}


def dtype_of(dtype: Any) -> np.dtype[Any] | None:
    """The data type in JAX; None if there is none."""
    return _DTYPES.get(dtype)


def too_wide(dtype: Any) -> str:
    """Why a data type is not supported; empty if it is."""
    if dtype in _WIDE:
        return f"{_WIDE[dtype]} tensors are not supported; use float32"
    return "" if dtype in _DTYPES else f"{dtype} tensors are not supported"


def value_of(name: str, tensor: Any) -> Value:
    """Shape and data type of a tensor, real or fake.

    Raises:
        Refused: a size is not a number.
    """
    if not all(isinstance(size, int) for size in tensor.shape):
        shape = ", ".join(map(str, tensor.shape))
        raise Refused(f"the shape ({shape}) depends on the data; only graphs with known shapes are supported")
    return Value(name, tuple(tensor.shape), dtype_of(tensor.dtype), exact=not too_wide(tensor.dtype))


def to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    """The values of a tensor, in a data type that JAX has and in memory of their own.

    Raises:
        Refused: the values do not fit, or there are none.
    """
    tensor = tensor.detach()
    if tensor.device.type == "meta":
        raise Refused("the tensor is on the meta device: it has no values; load the weights first")
    wanted = dtype_of(tensor.dtype)
    if wanted is None:
        raise Refused(too_wide(tensor.dtype))
    tensor = tensor.cpu()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    values = np.array(tensor.numpy())
    if wanted == np.int32 and values.size and np.abs(values.astype(np.float64)).max() > np.iinfo(np.int32).max:
        raise Refused("integers beyond 32 bits")
    return values.astype(wanted)
