"""Launch configurations: code, and one JSON per device."""
