"""What can be searched: spaces by name, and the genotypes they speak in."""

from pyfast_nas.spaces.base import Genotype, GenotypeEdge, SearchSpace
from pyfast_nas.spaces.cell_space import CellSpace
from pyfast_nas.spaces.darts import DARTS, DARTS_V1, DARTS_V2
from pyfast_nas.spaces.nas_bench_201 import NASBench201
from pyfast_nas.spaces.proxyless import PROXYLESS_GPU, UNAS_CHAIN, ProxylessNAS
from pyfast_nas.spaces.robust_darts import S1, S2, S3, S4
from pyfast_nas.spaces.tables import AccuracyTable
from pyfast_nas.spaces.toy import Toy

__all__ = [
    "DARTS",
    "DARTS_V1",
    "DARTS_V2",
    "PROXYLESS_GPU",
    "S1",
    "S2",
    "S3",
    "S4",
    "SPACES",
    "UNAS_CHAIN",
    "AccuracyTable",
    "Genotype",
    "GenotypeEdge",
    "NASBench201",
    "ProxylessNAS",
    "SearchSpace",
    "Toy",
]

SPACES: dict[str, type[CellSpace] | type[NASBench201] | type[ProxylessNAS] | type[Toy]] = {
    space.name: space for space in (DARTS, NASBench201, ProxylessNAS, S1, S2, S3, S4, Toy)
}
