"""From bytes to chunks in the store."""
