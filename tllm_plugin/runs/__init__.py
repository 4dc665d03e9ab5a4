"""Files of a run: its folder, records and arrays, atomic writing and validated reading."""
