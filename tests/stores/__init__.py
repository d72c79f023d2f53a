"""Stores as earlier versions left them: `schema_<number>.sql`, made by `build.py` under that version's code."""
