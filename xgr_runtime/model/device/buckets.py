"""The sizes that work is captured for on a GPU: a launch runs in the smallest one that holds it."""


def buckets_up_to(limit: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The ascending `sizes` below `limit`, and `limit`, which the last bucket holds."""
    return (*(size for size in sizes if size < limit), limit)


def bucket_for(count: int, buckets: tuple[int, ...]) -> int:
    """The smallest of the ascending `buckets` that holds `count`, which is at most the last of them."""
    return next(bucket for bucket in buckets if bucket >= count)
