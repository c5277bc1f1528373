"""Which collections and documents exist and how far each has come."""
