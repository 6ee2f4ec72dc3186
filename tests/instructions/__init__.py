"""Unit tests of every instruction, on both engines, against values worked out by hand from the specification."""

import pytest

pytest.register_assert_rewrite(f"{__name__}.machine_helpers")
