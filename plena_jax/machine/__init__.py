"""The emulated machine: state, semantics of every instruction, engines."""
