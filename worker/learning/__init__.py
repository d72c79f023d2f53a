"""Statistics, snapshots, the offline analysis, triggers and validation. Pure."""
