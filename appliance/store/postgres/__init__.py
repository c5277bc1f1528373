"""A store in PostgreSQL with pgvector, which several appliances may share."""
