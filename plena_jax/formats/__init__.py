"""Number formats as data: floats of any split, integers, MX blocks; encode, decode and round, bit-exact.

Two families. "ieee" follows IEEE 754, OCP MX v1.0 and ml_dtypes. "plena" follows the hardware model, quirks included
(docs/machine.md section 5). All formats are pytrees of small integers and pass through ``jit`` and ``vmap``; with
Python integers inside they are hashable. Rounding is straight-through for derivatives.
"""

from plena_jax.formats.floats import FloatFormat as FloatFormat
from plena_jax.formats.integers import IntFormat as IntFormat
from plena_jax.formats.mx import SCALE_RULES as SCALE_RULES
from plena_jax.formats.mx import MXFormat as MXFormat
from plena_jax.formats.named import NAMES as NAMES
from plena_jax.formats.named import Format as Format
from plena_jax.formats.named import named as named
from plena_jax.formats.packing import pack as pack
from plena_jax.formats.packing import unpack as unpack
from plena_jax.formats.quantizer import Quantizer as Quantizer
