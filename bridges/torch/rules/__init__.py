"""The rules by family; importing this package registers them all."""

from . import attention, convolution, elementwise, indexing, linear, norms, reductions, shapes
