"""What travels: records, events and commands, their limits and their identity. No I/O."""
