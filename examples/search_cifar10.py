"""Search a cell on CIFAR-10 with MSG-DAS and train what was found.

Run:  python examples/search_cifar10.py PATH_TO/cifar-10-batches-py
"""

import sys

import pyfast_nas as fnas


def main() -> None:
    """Search at a small size; the paper's sizes stand in the comments."""
    space = fnas.spaces.DARTS(channels=4, cells=3)  # 16 channels and 8 cells in the paper
    result = fnas.search(
        space,
        f"cifar10:{sys.argv[1]}",
        algorithm=fnas.algorithms.MSGDAS(paths=2),
        epochs=1,  # 50 in the paper
        batch_size=64,
        seed=0,
        output="runs/cifar10",
    )
    print(result.genotype.to_json())
    print(f"report: {result.report()}")
    network = result.build(channels=8, cells=5)  # 36 and 20 in the paper; plain torch.nn
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters")


if __name__ == "__main__":
    main()
