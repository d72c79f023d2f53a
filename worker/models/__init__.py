"""Models: the registry, the gate, the applier and how models reach those who use them."""
