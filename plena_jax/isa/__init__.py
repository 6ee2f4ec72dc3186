"""The instruction set as data."""

from plena_jax.isa.instruction import SRAM_ENTRIES as SRAM_ENTRIES
from plena_jax.isa.instruction import Address as Address
from plena_jax.isa.instruction import Field as Field
from plena_jax.isa.instruction import Instruction as Instruction
from plena_jax.isa.instruction import Kind as Kind
from plena_jax.isa.instruction import Operand as Operand
from plena_jax.isa.instruction import Space as Space
from plena_jax.isa.instruction import Unit as Unit
from plena_jax.isa.table import BY_MNEMONIC as BY_MNEMONIC
from plena_jax.isa.table import BY_OPCODE as BY_OPCODE
from plena_jax.isa.table import INSTRUCTIONS as INSTRUCTIONS
from plena_jax.isa.table import TOPK_POLICIES as TOPK_POLICIES
