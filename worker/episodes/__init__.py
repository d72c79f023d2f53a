"""The learn models: they cut, judge and convert. Pure functions of records."""
