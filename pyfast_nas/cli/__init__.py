"""The command line: each command is a function of one dataclass."""
