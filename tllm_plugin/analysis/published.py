"""Result tables of the paper's appendix: the printed numbers, and the runs that correspond to each cell.

Source: "Teach Less, Learn More" (NeurIPS 2022), appendix, Tables 5, 6, 8, 9, 10, 11.
"""

from __future__ import annotations

from dataclasses import dataclass

ACCURACY, UNDISTILLABLE = "accuracy", "undistillable"
DATA_SETS = ("cifar100", "imagenet", "cub200")


@dataclass(frozen=True)
class Cell:
    """Cell of a table.

    Args:
        published: Printed number in percent.
        data_set: "cifar100", "imagenet" or "cub200".
        method: Result of `method_of` without settings; "ESKD (KD)" covers all fractions.
        student: Architecture as written in the paper.
        teacher: Architecture of the teacher; empty for a network that was trained alone.
        measure: `ACCURACY`, or `UNDISTILLABLE` for the share of classes with delta acc < 0.
    """

    published: float
    data_set: str
    method: str
    student: str
    teacher: str = ""
    measure: str = ACCURACY


@dataclass(frozen=True)
class PublishedTable:
    """Table of the paper.


    Args:
        number: Number in the appendix.
        title: Title.
        decimals: Number of printed decimals.
        columns: Headings, without the column of row labels.
        rows: Label and cells of each row; a cell is None if nothing is printed, or "delta" for the difference of the
            two cells before it.
    """

    number: int
    title: str
    decimals: int
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | str | None, ...]], ...]


DIFFERENCE = "delta"


def _pairs_with_tllm(
    data_set: str, pairs: tuple[tuple[str, str], ...], rows: dict[str, tuple[float, ...]], measure: str
) -> tuple[tuple[str, tuple[Cell | str | None, ...]], ...]:
    """Return rows of (method, TLLM, difference) for every pair."""
    result = []
    for method, numbers in rows.items():
        cells: list[Cell | str | None] = []
        for (teacher, student), plain, tllm in zip(pairs, numbers[::2], numbers[1::2], strict=True):
            cells += [
                Cell(plain, data_set, method, student, teacher, measure),
                Cell(tllm, data_set, f"TLLM ({method})", student, teacher, measure),
                DIFFERENCE,
            ]
        result.append((method, tuple(cells)))
    return tuple(result)


def _alone(
    data_set: str, label: str, networks: tuple[tuple[str, float], ...]
) -> tuple[str, tuple[Cell | str | None, ...]]:
    """Return a row of networks trained alone, one per pair of a table with differences."""
    cells: list[Cell | str | None] = []
    for network, accuracy in networks:
        cells += [Cell(accuracy, data_set, "vanilla", network), None, None]
    return label, tuple(cells)


def _headings(pairs: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return tuple(f"{teacher}/{student} {what}" for teacher, student in pairs for what in ("Vanilla", "TLLM", "\u0394"))


_CIFAR = (("ResNet32x4", "ResNet8x4"), ("ResNet50", "MobileNetV2"), ("ResNet32x4", "ShuffleNetV1"))
# The paper's heading is ResNet32/ResNet18, but its accuracies and its Table 11 correspond to ResNet34.
_IMAGENET = (("ResNet34", "ResNet18"), ("ResNet50", "MobileNetV1"))
_CUB = (("ResNet50", "ResNet18"), ("ResNet50", "MobileNetV2"))
_WRN_TEACHERS = ("WRN-28-2", "WRN-40-2", "WRN-16-4", "WRN-28-4")
_SMOOTHING = (("ResNet32x4", "ResNet8x4"), ("ResNet50", "MobileNetV2"), ("ResNet50", "ShuffleNetV1"))
_SMOOTHING_NUMBERS = ((72.50, 73.08, 73.86, 75.53), (64.60, 67.28, 65.11, 69.54), (70.50, 74.07, 70.78, 76.67))

TABLES: tuple[PublishedTable, ...] = (
    PublishedTable(
        5,
        "Undistillable classes on CIFAR-100 (% of classes with delta acc < 0)",
        0,
        _headings(_CIFAR),
        _pairs_with_tllm(
            "cifar100",
            _CIFAR,
            {
                "KD": (52, 16, 48, 14, 54, 15),
                "FitNet": (39, 14, 46, 17, 45, 19),
                "AT": (37, 17, 39, 13, 43, 17),
            },
            UNDISTILLABLE,
        ),
    ),
    PublishedTable(
        6,
        "Larger teachers for WRN-16-2 on CIFAR-100 (top-1, %)",
        2,
        _WRN_TEACHERS,
        (
            (
                "teacher alone",
                tuple(
                    Cell(value, "cifar100", "vanilla", teacher)
                    for teacher, value in zip(_WRN_TEACHERS, (73.43, 75.40, 75.72, 77.31), strict=True)
                ),
            ),
            *(
                (
                    label,
                    tuple(
                        Cell(value, "cifar100", method, "WRN-16-2", teacher)
                        for teacher, value in zip(_WRN_TEACHERS, numbers, strict=True)
                    ),
                )
                for label, method, numbers in (
                    ("KD", "KD", (75.21, 74.97, 75.38, 75.21)),
                    ("TLLM", "TLLM (KD)", (76.02, 76.54, 77.11, 77.35)),
                )
            ),
        ),
    ),
    PublishedTable(
        8,
        "ImageNet (top-1, %)",
        1,
        _headings(_IMAGENET),
        (
            _alone("imagenet", "Teacher", (("ResNet34", 73.3), ("ResNet50", 76.2))),
            _alone("imagenet", "Student", (("ResNet18", 69.8), ("MobileNetV1", 68.9))),
            *_pairs_with_tllm(
                "imagenet",
                _IMAGENET,
                {"KD": (70.7, 72.1, 70.5, 72.0), "AT": (70.7, 71.5, 69.6, 70.6), "SFTN": (71.1, 72.0, 71.5, 72.8)},
                ACCURACY,
            ),
        ),
    ),
    PublishedTable(
        9,
        "Label smoothing on CIFAR-100 (top-1, %)",
        2,
        ("Student", "KD", "LS", "TLLM"),
        tuple(
            (
                f"{teacher}/{student}",
                (
                    Cell(numbers[0], "cifar100", "vanilla", student),
                    Cell(numbers[1], "cifar100", "KD", student, teacher),
                    Cell(numbers[2], "cifar100", "LS", student),
                    Cell(numbers[3], "cifar100", "TLLM (KD)", student, teacher),
                ),
            )
            for (teacher, student), numbers in zip(_SMOOTHING, _SMOOTHING_NUMBERS, strict=True)
        ),
    ),
    PublishedTable(
        10,
        "CUB-200-2011 (top-1, %)",
        2,
        _headings(_CUB),
        (
            _alone("cub200", "Teacher", (("ResNet50", 82.17), ("ResNet50", 82.17))),
            _alone("cub200", "Student", (("ResNet18", 76.89), ("MobileNetV2", 79.20))),
            *_pairs_with_tllm("cub200", _CUB, {"KD": (79.96, 81.15, 81.18, 82.26)}, ACCURACY),
        ),
    ),
    PublishedTable(
        11,
        "Early-stopped KD (top-1, %); ESKD: the best of the tried fractions, as in the paper",
        1,
        ("Vanilla", "ESKD", "TLLM"),
        tuple(
            (
                label,
                (
                    Cell(numbers[0], data_set, "vanilla", student),
                    Cell(numbers[1], data_set, "ESKD (KD)", student, teacher),
                    Cell(numbers[2], data_set, "TLLM (KD)", student, teacher),
                ),
            )
            for label, data_set, teacher, student, numbers in (
                ("CIFAR-100, ResNet50/MobileNetV2", "cifar100", "ResNet50", "MobileNetV2", (64.6, 66.4, 69.5)),
                ("ImageNet, ResNet34/ResNet18", "imagenet", "ResNet34", "ResNet18", (69.8, 70.7, 72.1)),
            )
        ),
    ),
)
