"""The fused engine: a resolved trace as dense array work."""
