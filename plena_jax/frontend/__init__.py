"""Front ends: functions of arrays become programs."""
