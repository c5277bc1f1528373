"""Every format that a document may have: what it is, and how its text is read."""
