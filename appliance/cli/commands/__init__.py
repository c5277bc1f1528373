"""The commands: `local` needs no server, `remote` asks one that runs."""
