"""The table of limits in SECURITY.md."""

from ceit.limits import ALL


def limits_table() -> str:
    """Every limit with its number, its reason and the variable that sets another."""
    lines = ["| of | at most | why so many | set another with |", "|---|---|---|---|"]
    for limit in ALL:
        variable = f"`{limit.variable}`" if limit.variable else "nothing"
        lines.append(f"| {limit.what} | {limit.value:,} {limit.unit} | {limit.reason} | {variable} |")
    return "\n".join(lines)
