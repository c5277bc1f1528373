"""`appliance tune`: measure this machine, and find the settings that suit it best."""
