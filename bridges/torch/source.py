"""Where in the user's program a node of a graph comes from."""

from __future__ import annotations

import os
import re
from typing import Any

import torch

_FRAME = re.compile(r'^ *File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*\n(?P<code>[^\n]*)', re.MULTILINE)
_TORCH = os.path.dirname(torch.__file__) + os.sep


def source_of(node: Any) -> str:
    """``file:line  code`` of the innermost frame outside of torch; empty if it is not known."""
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
    own = [
        frame
        for frame in frames
        if not frame["file"].startswith(_TORCH) and "/site-packages/torch/" not in frame["file"]
    ]
    if not (own or frames):
        return ""
    frame = (own or frames)[-1]
    return f"{frame['file']}:{frame['line']}  {frame['code'].strip()}".rstrip()


def path_of(node: Any) -> str:
    """Path of the module that a node is in; empty for the root."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""
