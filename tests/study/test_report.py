"""Tables of studies on cells whose answers are chosen, so that every figure is worked out by hand."""

from ceit.study.cells import Record, pack
from ceit.study.plan import Study
from ceit.study.report import accuracy_table, markdown
from tools.overview import evidence_table

STUDY = Study.from_dict(
    "made",
    {
        "title": "Made",
        "question": "?",
        "paper": "none",
        "arms": {"one": {"tuned_as": None}, "two": {"tuned_as": None}, "three": {"tuned_as": None}},
        "compare": [["one", "two"], ["three", "one"]],
    },
)


def cell(seed: int, right: int, of: int = 1000) -> Record:
    """A network that recognises the first ``right`` images."""
    found = {"images": of, "top1_percent": 100 * right / of, "right": pack([n < right for n in range(of)])}
    return {"seed": seed, "test": found, "machine": {"accelerator": None, "processor": "P"}}


def rows(records: dict[str, list[Record]]) -> list[str]:
    return [line for line in evidence_table([(STUDY, records)]).splitlines() if line.startswith(("| one", "| three"))]


def test_a_row_is_of_the_seeds_that_both_have_and_a_pair_without_any_has_none() -> None:
    records = {"one": [cell(0, 800), cell(1, 820), cell(2, 999)], "two": [cell(0, 700), cell(1, 740)]}
    assert rows(records) == ["| one | 81.00 % ± 1.41 | two, 72.00 % ± 2.83 | **+9.00** | 2 | < 0.0001 | - | better |"]


def test_the_largest_p_is_shown_and_one_seed_against_the_others_makes_no_claim() -> None:
    records = {"one": [cell(0, 800), cell(1, 700)], "two": [cell(0, 700), cell(1, 703)]}
    # three images that one network alone recognised, all of them the second's: p = 2 / 2^3
    assert rows(records) == [
        "| one | 75.00 % ± 7.07 | two, 70.15 % ± 0.21 | **+4.85** | 2 | 0.25 | - | not significant |"
    ]


def test_a_single_seed_has_no_spread_and_makes_no_claim() -> None:
    records = {"one": [cell(0, 800)], "three": [cell(0, 900)]}
    assert rows(records) == ["| three | 90.00 % | one, 80.00 % | **+10.00** | 1 | < 0.0001 | - | one seed |"]


def test_three_seeds_are_tested_as_a_whole_too() -> None:
    records = {
        "one": [cell(n, right) for n, right in enumerate((800, 810, 830))],
        "two": [cell(n, 700) for n in range(3)],
    }
    # gains 10, 11 and 13: t = 12.85 of two degrees of freedom
    assert rows(records)[0].endswith("| **+11.33** | 3 | < 0.0001 | 0.006 | better |")


def test_arms_that_were_trained_on_different_devices_are_said_to_be() -> None:
    elsewhere = {"machine": {"accelerator": "G", "processor": "P"}}
    records = {"one": [cell(0, 800), cell(1, 820) | elsewhere], "two": [cell(0, 700), cell(1, 740)]}
    assert rows(records)[0].endswith("| better, on different devices |")


def test_no_word_of_a_table_ends_its_field_or_its_row() -> None:
    assert markdown(["a|b", ""], [["one\ntwo", ""]]).splitlines() == [r"| a\|b | |", "|---|---|", "| one two | |"]


def trained(seed: int, accelerator: str | None, seconds: float) -> Record:
    return cell(seed, 800) | {
        "machine": {"accelerator": accelerator, "processor": "P"},
        "train_seconds": seconds,
        "parameters": 333_000,
        "macs": 17_400_000,
        "epochs": 4,
        "options": {"peak_lr": 0.004},
        "best": {"validation_top1_percent": 79.0},
    }


def test_minutes_are_those_of_one_device_and_never_a_mean_of_two() -> None:
    records = {"one": [trained(0, None, 600), trained(1, "G", 60), trained(2, "G", 180)], "two": [trained(0, "G", 90)]}
    lines = accuracy_table(STUDY, "digits", records).splitlines()
    assert lines[0].endswith("| spread | minutes, G | minutes, P |")
    assert lines[2] == "| one | 0.333M | 17.4 | 4 | 0.004 | 3 | 79.00 % | **80.00 %** | ± 0.00 | 2.0 | 10.0 |"
    assert lines[3].endswith("| - | 1.5 | - |")
    assert lines[4] == "| three | | | | | 0 | | *not measured yet* | | | |"
    alone = accuracy_table(STUDY, "digits", {"two": [trained(0, None, 90)]}).splitlines()
    assert alone[0].endswith("| spread | minutes |")
