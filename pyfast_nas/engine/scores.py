"""What a search finds, looked up in a table of measured architectures."""

from typing import Any

from pyfast_nas.engine.callbacks import EpochEnd
from pyfast_nas.errors import ConfigError
from pyfast_nas.spaces.base import Genotype, SearchSpace
from pyfast_nas.spaces.tables import AccuracyTable, Score

__all__ = ["COLUMNS", "TableScores"]

# Data set -> columns of validation and test accuracy by the protocol of NAS-Bench-201: search with
# twelve epochs of training, report two hundred. The first one is that of all other data sets.
COLUMNS = {
    "cifar10": ("c10_val_e12", "c10_test_e200"),
    "cifar100": ("c100_val_e12", "c100_test_e200"),
}
_SPLITS = ("valid", "test")


class TableScores:
    """Looks genotypes up in two columns of a table; as a callback, those of every epoch.

    Args:
        path: File of the table.
        space: Whose architectures must have a row each.
        data_name: Name of the data set, for the columns.
        columns: Columns of validation and test accuracy; None takes those of the data set.

    Attributes:
        columns: Their names.

    Raises:
        ConfigError: If architectures of the space have no name in tables.
        DataError: If the file is no such table.
    """

    def __init__(
        self,
        path: str,
        space: SearchSpace,
        data_name: str,
        columns: tuple[str, str] | None = None,
    ) -> None:
        if not hasattr(space, "strings"):
            raise ConfigError(
                f"search: table must go with a space whose architectures have names in tables, "
                f"such as nas-bench-201, got {space.name!r:.200}"
            )
        self._table = AccuracyTable.read(path, set(space.strings()))
        self._space = space
        self.columns = columns or COLUMNS.get(data_name, COLUMNS["cifar10"])
        for column in self.columns:
            self._table.column(column)

    def __call__(self, end: EpochEnd) -> None:
        """Put what the table says of an epoch's architecture into its row."""
        end.row.update(self.row(end.genotype))

    def row(self, genotype: Genotype) -> dict[str, float]:
        """Return what a line of metrics says of a genotype: value, rank, regret of each split."""
        return {
            key: value
            for split, score in self._scores(genotype).items()
            for key, value in (
                (f"table/{split}", score.value),
                (f"table/{split}_rank", score.rank),
                (f"table/{split}_regret", score.regret),
            )
        }

    def record(self, genotype: Genotype) -> dict[str, Any]:
        """Return what a result says of a genotype, as JSON values."""
        names = dict(zip(_SPLITS, self.columns, strict=True))
        return {
            "file": self._table.path,
            "architectures": len(self._table),
            "arch": self._space.to_string(genotype),
            **{
                split: {"column": names[split], **score._asdict()}
                for split, score in self._scores(genotype).items()
            },
        }

    def _scores(self, genotype: Genotype) -> dict[str, Score]:
        arch = self._space.to_string(genotype)
        return {
            split: self._table.score(arch, column)
            for split, column in zip(_SPLITS, self.columns, strict=True)
        }
