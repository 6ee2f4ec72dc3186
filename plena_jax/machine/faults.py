"""Why a machine stopped: codes that live in the state, and their explanation for people."""

from __future__ import annotations

import enum


class Fault(enum.IntEnum):
    """Status of a machine. Everything but OK and LIMIT is an instruction that could not be executed."""

    OK = 0
    #: The caller's ``max_instructions`` were executed; the machine can be run on.
    LIMIT = 1
    INVALID_OPCODE = 2
    F_REGISTER = 3
    MISALIGNED = 4
    OUT_OF_RANGE = 5
    TOPK_POLICY = 6
    HEADS = 7
    M_BMV = 8
    FORMAT = 9
    LOOP_ZERO = 10
    LOOP_UNMATCHED = 11
    LOOP_GUARD = 12
    LOOP_DEPTH = 13
    HBM_RANGE = 14
    #: Inside the configured memory but beyond the rows or bytes that this state holds; ``run`` grows the state and goes
    #: on.
    VRAM_UNALLOCATED = 15
    HBM_UNALLOCATED = 16
    #: Only while resolving: an integer that the datapath computed (V_TOPK) decides where the program goes.
    DATA_DEPENDENT = 17
    BREAK_UNMATCHED = 18


#: Faults after which the same instruction can be tried again with a larger state.
GROWABLE = (Fault.VRAM_UNALLOCATED, Fault.HBM_UNALLOCATED)
