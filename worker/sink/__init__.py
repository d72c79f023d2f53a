"""Many deliveries become one transaction and many acknowledgements; what cannot be stored becomes quarantine."""
