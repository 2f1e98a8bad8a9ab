"""The rows of a Parquet file that a stranger wrote. Law: what it unpacks to is counted before it is unpacked.

Parquet names a text once and then says where it stands, so a small file may hold any number of long ones. Texts are read as they are
stored, by number, and what they come to is added up batch by batch before a batch is made into rows.
"""

import re
from io import BytesIO
from typing import Any

from kedit_hub.errors import EditError, LimitError
from kedit_hub.limits import DEFAULT

SAFE_PYARROW = (14, 0, 1)  # older ones can be made to run code by a Parquet file
BATCH = 10_000  # rows
CELL = 16  # bytes that any value is counted with besides its own: an empty one takes room too


def read_rows(data: bytes, name: str, limit: int | None) -> list[dict[str, Any]]:
    """The first `limit` rows, None for all. EditError for what is no Parquet file, LimitError for one that unpacks to too much."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise EditError(f"{name} is a Parquet file, and pyarrow is not installed: pip install pyarrow") from None
    if tuple(int(part) for part in re.findall(r"\d+", pyarrow.__version__)[:3]) < SAFE_PYARROW:
        needed = ".".join(map(str, SAFE_PYARROW))
        raise EditError(
            f"{name} is a Parquet file, and pyarrow {pyarrow.__version__} is too old to read what strangers wrote: "
            f"pip install 'pyarrow>={needed}'"
        )
    if len(data) > DEFAULT.max_records_bytes:
        raise LimitError(f"{name} has more than {DEFAULT.max_records_bytes:,} bytes; no more are read.")
    rows: list[dict[str, Any]] = []
    unpacked = 0
    try:
        about = parquet.ParquetFile(BytesIO(data))
        _check(_told(about.metadata), name)
        columns = [about.schema.column(i) for i in range(len(about.schema))]
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        file = parquet.ParquetFile(BytesIO(data), read_dictionary=texts)
        for batch in file.iter_batches(batch_size=BATCH if limit is None else min(BATCH, limit)):
            unpacked += batch.num_rows * CELL + sum(map(_size, batch.columns))
            _check(unpacked, name)
            rows += batch.to_pylist()
            if limit is not None and len(rows) >= limit:
                break
    except (pyarrow.ArrowException, OSError, RecursionError) as cause:
        raise EditError(f"{name} is not a readable Parquet file: {str(cause)[:200]}.") from None
    return rows[:limit]


def _check(unpacked: int, name: str) -> None:
    if unpacked > DEFAULT.max_records_bytes:
        raise LimitError(f"{name} unpacks to {unpacked:,} bytes; at most {DEFAULT.max_records_bytes:,} are read.")


def _told(metadata: Any) -> int:
    """What the file says of itself: bytes as they are stored, or values, whichever takes more room."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    values = sum(group.column(i).num_values for group in groups for i in range(group.num_columns))
    return max(sum(group.total_byte_size for group in groups), values * CELL)


def _size(array: Any) -> int:
    """Bytes of an Arrow array with every value written out."""
    from pyarrow import compute, types

    kind = array.type
    own = len(array) * CELL
    if types.is_struct(kind):
        return own + sum(map(_size, array.flatten()))
    if types.is_map(kind):
        return own + _size(array.keys) + _size(array.items)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return own + _size(array.flatten())
    if types.is_dictionary(kind):
        lengths = compute.take(compute.binary_length(array.dictionary), array.indices)
        return own + (compute.sum(compute.cast(lengths, "int64")).as_py() or 0)
    return own + int(array.nbytes)
