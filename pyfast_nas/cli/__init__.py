"""The command line: each command is a function of one dataclass."""

__all__: list[str] = []
