"""The HTTP interface: thin routes that parse, make one call and shape the answer."""
