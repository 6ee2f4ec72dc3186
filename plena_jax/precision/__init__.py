"""What a number format costs: sweeps over formats for each place of the machine, with one compilation a block size.

>>> from plena_jax import MachineConfig, precision
>>> workload = precision.Workload.projection(4, 64, 64, MachineConfig())
>>> found = precision.sweep(workload, ["float8_e4m3fn", "mxfp4_e2m1"], places=["weights"], blocks=[32])
>>> [entry.format for entry in found.entries]
['float8_e4m3fn', 'mxfp4_e2m1']
>>> found.best("weights", max_relative_l2=0.05).format
'float8_e4m3fn'
"""

from plena_jax.precision.metrics import Distance as Distance
from plena_jax.precision.metrics import distance as distance
from plena_jax.precision.places import BLOCKS as BLOCKS
from plena_jax.precision.places import PLACES as PLACES
from plena_jax.precision.places import RULES as RULES
from plena_jax.precision.places import Candidate as Candidate
from plena_jax.precision.report import Entry as Entry
from plena_jax.precision.report import Skipped as Skipped
from plena_jax.precision.report import Sweep as Sweep
from plena_jax.precision.study import sweep as sweep
from plena_jax.precision.workload import Operand as Operand
from plena_jax.precision.workload import Workload as Workload
