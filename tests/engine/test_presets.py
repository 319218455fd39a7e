"""Settings that suit a space, and what is made from its name alone."""

from pyfast_nas.engine import preset, search, train
from pyfast_nas.spaces import S2, ProxylessNAS


def test_small_cells_are_trained_as_large_as_they_were_searched():
    chosen = preset("cifar10", space_name="s2")
    assert (chosen.channels, chosen.cells) == (S2().channels, S2().cells) == (16, 8)
    assert (chosen.train_channels, chosen.train_cells) == (16, 8)
    assert chosen.train_epochs == preset("cifar10").train_epochs
    assert preset("digits", space_name="s4") == preset("digits")


def test_a_chain_by_its_name():
    """The genotype of a small chain is one of the space that its name stands for on these data."""
    result = search("proxylessnas", "digits", epochs=0, compare=0)
    assert result.space.blocks == (2, 2, 2, 2, 2, 1) and result.space.width_factor == 0.25
    trained = train(result.genotype, "digits", epochs=0)
    assert trained.module.operations == tuple(e.op for e in result.genotype.cells["blocks"])
    assert preset("cifar10", space_name="proxylessnas").space_options == {}


def test_a_chain_of_its_own_sizes():
    space = ProxylessNAS(width_factor=0.25, widths=(32, 64), blocks=(2, 1), strides=(2, 1))
    result = search(space, "digits", epochs=0, compare=0)
    fitted = space.with_data(1, 10, (8, 8))
    assert result.space == fitted
    network = result.build()
    assert network.classifier.out_features == 10
    assert fitted.genotype_of(network) == result.genotype
