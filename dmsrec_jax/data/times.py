"""Times of a click log: numbers or ISO 8601, in whatever type a column has."""

import polars as pl

_COMPACT = r"^(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(\d{6})?$"


def microseconds(log: pl.LazyFrame, name: str, dtype: pl.DataType) -> tuple[pl.Expr, pl.Expr]:
    """The time column as int64 microseconds since 1970, null where it cannot be read; and where it is out of range.

    They are numbers or ISO 8601, whichever most of the first rows are; 20140407 and 20140407101112 are the latter. A
    number below 1e11 is in seconds (to the year 5138), one below 1e14 in milliseconds (from 1973).
    """
    column = pl.col(name)
    if dtype in (pl.Categorical, pl.Enum, pl.Binary):  # text, as some programs keep it
        column, dtype = column.cast(pl.String), pl.String()
    if dtype == pl.Date or dtype == pl.Datetime:
        column = column.cast(pl.Datetime("us")) if dtype == pl.Date else column
        return column.dt.epoch("us"), pl.lit(False)
    text = column.cast(pl.String).str.strip_chars()
    number = text.cast(pl.Float64, strict=False) if dtype == pl.String else column.cast(pl.Float64)
    digits = text if dtype == pl.String else number.cast(pl.Int64, strict=False).cast(pl.String)
    is_number = number.is_not_null() & ~digits.str.contains(_COMPACT)
    start = log.select(number=is_number, text=text.is_not_null()).head(1000).sum().collect()
    if 2 * start["number"].item() < start["text"].item():
        return _iso(digits), pl.lit(False)
    size = number.abs()
    scale = pl.when(size < 1e11).then(1e6).when(size < 1e14).then(1e3)
    return (number * scale).round().cast(pl.Int64), number.is_finite() & scale.is_null()


def _iso(text: pl.Expr) -> pl.Expr:
    text = text.str.replace(r"^(\S{10})T", "${1} ").str.replace(r"\s*(Z|UTC)$", "+00:00")
    text = pl.when(text.str.contains(r"^\d{4}(-|\d{4})")).then(text)  # %Y would take the 31 of 31-12-13 for a year
    clocks = ("-%m-%d %H:%M:%S%.f", "-%m-%d %H:%M:%S%.f%#z", "-%m-%d %H:%M", "-%m-%d %H:%M%#z", "%m%d%H%M%S")
    times = [text.str.to_datetime(f"%Y{rest}", strict=False, time_unit="us").dt.epoch("us") for rest in clocks]
    dates = [text.str.to_date(form, strict=False).dt.epoch("us") for form in ("%Y-%m-%d", "%Y%m%d")]
    return pl.coalesce(*times, *dates)
