"""Facts about the named data sets. No images are read here.

Sizes and class balance are those of Appendix A of the paper and of each data set's own publication. Labels are in the order of
the distributed files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Policy = Literal["cifar10", "svhn", "imagenet"]


@dataclass(frozen=True)
class DatasetInfo:
    """The properties of a data set that are known before it is opened.

    Args:
        title: usual name.
        size: height and width of the images; None if they vary (images are then resized and cropped to the model's size).
        channels: 1 or 3.
        splits: split -> number of images.
        source: web page that distributes the data set.
        license: terms of use, if stated.
        classes: class names in label order; empty if the files contain them, or if there are no classes.
        num_classes: number of classes; 0 without labels.
        balance: split -> images per class, a single number if equal for all; no entry if unknown or unlabeled.
        files: paths to search for, in order of preference: an archive as distributed, or a folder (or file) from it.
        needs: description of the files that the user has to provide.
        md5: file -> published checksum; a file with a different one is rejected.
        download: whether hybvit can download it.
        preset: the paper's recipe for it.
        policy: the AutoAugment policy for strong augmentation (Section 4 of the paper's set-up).
        out_of_distribution: the out-of-distribution data sets of the paper (Tables 3 and 11).
    """

    title: str
    size: int | None
    channels: int
    splits: dict[str, int]
    source: str
    license: str
    classes: tuple[str, ...] = ()
    num_classes: int = 0
    balance: dict[str, int | tuple[int, ...]] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    needs: str = ""
    md5: dict[str, str] = field(default_factory=dict)
    download: bool = False
    preset: str | None = None
    policy: Policy = "imagenet"
    out_of_distribution: tuple[str, ...] = ()


DEBIAN = Path("/usr/share/datasets")  # the install path of Debian packages such as dataset-fashion-mnist

DIGITS = tuple("0123456789")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster",
    "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter",
    "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon",
    "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
    "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
    "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip
STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
IMAGENET_TERMS = "non-commercial research, by agreement with image-net.org"


def idx_alternatives(torchvision_folder: str) -> tuple[str, ...]:
    """Possible paths of the first of the four IDX files: as downloaded, unpacked, or in torchvision's layout."""
    names = (f"{IDX_FILES[0]}.gz", IDX_FILES[0])
    return names + tuple(f"{torchvision_folder}/raw/{name}" for name in names)


def idx_md5(*sums: str) -> dict[str, str]:
    return {f"{name}.gz": md5 for name, md5 in zip(IDX_FILES, sums, strict=True)}


CATALOG: dict[str, DatasetInfo] = {
    "digits": DatasetInfo(
        title="Optical digits (scikit-learn)",
        size=8,
        channels=1,
        splits={"train": 1433, "test": 364},
        source="https://scikit-learn.org/stable/datasets/toy_dataset.html",
        license="CC BY 4.0",
        classes=DIGITS,
        num_classes=10,
        balance={
            "train": (142, 145, 141, 146, 144, 145, 144, 143, 139, 144),
            "test": (36, 37, 36, 37, 37, 37, 37, 36, 35, 36),
        },
        preset="digits_paper",
    ),
    "mnist": DatasetInfo(
        title="MNIST",
        size=28,
        channels=1,
        splits={"train": 60_000, "test": 10_000},
        source="https://ossci-datasets.s3.amazonaws.com/mnist/",
        license="CC BY-SA 3.0",
        classes=DIGITS,
        num_classes=10,
        balance={
            "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
            "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
        },
        needs="the four IDX files (train-images-idx3-ubyte.gz ...)",
        files=idx_alternatives("MNIST"),
        md5=idx_md5(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        download=True,
    ),
    "fashion_mnist": DatasetInfo(
        title="Fashion-MNIST",
        size=28,
        channels=1,
        splits={"train": 60_000, "test": 10_000},
        source="https://github.com/zalandoresearch/fashion-mnist",
        license="MIT",
        classes=FASHION_MNIST_CLASSES,
        num_classes=10,
        balance={"train": 6000, "test": 1000},
        needs="the four IDX files (train-images-idx3-ubyte.gz ...)",
        files=idx_alternatives("FashionMNIST"),
        md5=idx_md5(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        download=True,
        preset="fashion_mnist_pocket",
        out_of_distribution=("mnist", "interpolation", "digits"),
    ),
    "cifar10": DatasetInfo(
        title="CIFAR-10",
        size=32,
        channels=3,
        splits={"train": 50_000, "test": 10_000},
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
        license="none stated",
        classes=CIFAR10_CLASSES,
        num_classes=10,
        balance={"train": 5000, "test": 1000},
        needs="cifar-10-python.tar.gz or cifar-10-binary.tar.gz",
        files=("cifar-10-batches-py", "cifar-10-python.tar.gz", "cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
        md5={
            "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
            "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
        },
        download=True,
        preset="cifar10",
        policy="cifar10",
        out_of_distribution=("svhn", "interpolation", "cifar100", "celeba"),
    ),
    "cifar100": DatasetInfo(
        title="CIFAR-100",
        size=32,
        channels=3,
        splits={"train": 50_000, "test": 10_000},
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
        license="none stated",
        classes=CIFAR100_CLASSES,
        num_classes=100,
        balance={"train": 500, "test": 100},
        needs="cifar-100-python.tar.gz or cifar-100-binary.tar.gz",
        files=("cifar-100-python", "cifar-100-python.tar.gz", "cifar-100-binary", "cifar-100-binary.tar.gz"),
        md5={
            "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
            "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
        },
        download=True,
        preset="cifar100",
        policy="cifar10",
    ),
    "svhn": DatasetInfo(
        title="SVHN (cropped digits)",
        size=32,
        channels=3,
        splits={"train": 73_257, "test": 26_032, "extra": 531_131},
        source="http://ufldl.stanford.edu/housenumbers/",
        license="non-commercial use only",
        classes=DIGITS,
        num_classes=10,
        balance={
            "train": (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
            "test": (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
        },
        needs="train_32x32.mat and test_32x32.mat",
        files=("test_32x32.mat",),
        md5={
            "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
            "extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7",
        },
        download=True,
        policy="svhn",
    ),
    "stl10": DatasetInfo(
        title="STL-10",
        size=96,
        channels=3,
        splits={"train": 5000, "test": 8000, "unlabelled": 100_000},
        source="https://cs.stanford.edu/~acoates/stl10/",
        license="none stated; its images come from ImageNet",
        classes=STL10_CLASSES,
        num_classes=10,
        balance={"train": 500, "test": 800},
        needs="stl10_binary.tar.gz",
        files=("stl10_binary", "stl10_binary.tar.gz"),
        md5={"stl10_binary.tar.gz": "91f7769df0f17e558f3565bffb0c7dfb"},
        download=True,
        preset="stl10",
    ),
    "tiny_imagenet": DatasetInfo(
        title="Tiny-ImageNet",
        size=64,
        channels=3,
        splits={"train": 100_000, "test": 10_000, "unlabelled": 10_000},
        source="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        license=IMAGENET_TERMS,
        num_classes=200,
        balance={"train": 500, "test": 50},
        needs="tiny-imagenet-200.zip",
        files=("tiny-imagenet-200", "tiny-imagenet-200.zip"),
        md5={"tiny-imagenet-200.zip": "90528d7ca1a48142e341f4ef8d21d0de"},
        download=True,
        preset="tiny_imagenet",
    ),
    "imagenet32": DatasetInfo(
        title="ImageNet 32x32 (Chrabaszcz et al.)",
        size=32,
        channels=3,
        splits={"train": 1_281_167, "test": 50_000},
        source="https://image-net.org/download-images.php",
        license=IMAGENET_TERMS,
        num_classes=1000,
        balance={"test": 50},
        needs="train_data_batch_1 ... 10 and val_data, or their .npz or .zip form",
        files=("val_data.npz", "val_data", "Imagenet32_val_npz.zip", "Imagenet32_val.zip"),
        preset="imagenet32",
    ),
    "imagenet": DatasetInfo(
        title="ImageNet (ILSVRC 2012)",
        size=None,
        channels=3,
        splits={"train": 1_281_167, "test": 50_000},
        source="https://image-net.org/download-images.php",
        license=IMAGENET_TERMS,
        num_classes=1000,
        balance={"test": 50},
        needs="train/ and val/ with a folder of images per class",
        files=("train",),
        preset="imagenet128",
    ),
    "celeba": DatasetInfo(
        title="CelebA (aligned and cropped)",
        size=None,
        channels=3,
        splits={"train": 162_770, "validation": 19_867, "test": 19_962},
        source="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        license="non-commercial research only",
        needs="img_align_celeba.zip and list_eval_partition.txt",
        files=("celeba/img_align_celeba", "celeba/img_align_celeba.zip", "img_align_celeba", "img_align_celeba.zip"),
        md5={
            "img_align_celeba.zip": "00d2c5bc6d35e252742224ab0c1e8fcb",
            "list_eval_partition.txt": "d32c9cbf5e040fd4025c592c306e6668",
        },
    ),
    "celeba_hq": DatasetInfo(
        title="CelebA-HQ",
        size=None,
        channels=3,
        splits={"train": 27_000, "test": 3000},
        source="https://github.com/switchablenorms/CelebAMask-HQ",
        license="non-commercial research only",
        needs="CelebAMask-HQ.zip (or its folder CelebA-HQ-img)",
        files=(
            "CelebA-HQ-img",
            "CelebAMask-HQ/CelebA-HQ-img",
            "CelebAMask-HQ.zip",
            "celeba_hq.zip",
            "celeba_hq",
            "data1024x1024",
            "data1024x1024.zip",
            "celeba_hq_256",
            "celeba_hq_256.zip",
        ),
        preset="celeba_hq_128",
    ),
}


def plain(name: str) -> str:
    """A class name as it compares with the name of a folder, in which T-shirt/top becomes T-shirt_top."""
    return re.sub(r"[\W_]", "", name).casefold()


def has_classes(info: DatasetInfo, names: Iterable[str]) -> bool:
    """Whether these are the published class names, in any order."""
    return bool(info.classes) and sorted(map(plain, names)) == sorted(map(plain, info.classes))


OWN_IMAGES = ("folder", "manifest", "huggingface", "shards")
