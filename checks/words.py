"""How checks write numbers for people, so that all of them write them alike."""


def lasted(seconds: float) -> str:
    """``12 s``, ``34 min``, ``5.6 h``, ``7 d``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"


def sized(count: float) -> str:
    """``512 B``, ``1.5 GiB``: bytes in the unit that fits."""
    value, units = float(count), ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if abs(value) < 1024 or unit == units[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("the last unit fits everything")


def many(number: int, one: str, more: str = "") -> str:
    """``1 session``, ``3 sessions``; ``more`` where an s is not enough."""
    return f"1 {one}" if number == 1 else f"{number:,} {more or one + 's'}"
