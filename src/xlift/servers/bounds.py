"""How much of an answer is read: a server that sends without end fills no memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

from httpx2 import AsyncByteStream, Response

LONGEST_ANSWER = 16_000_000
"""Bytes; a reply of a judge has some thousands."""


class _Bounded(AsyncByteStream):
    def __init__(self, whole: AsyncByteStream) -> None:
        self.whole = whole

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = LONGEST_ANSWER
        async for part in self.whole:
            left -= len(part)
            if left < 0:
                raise EOFError(f"the answer is longer than {LONGEST_ANSWER:,} bytes")
            yield part

    async def aclose(self) -> None:
        await self.whole.aclose()


async def bound(response: Response) -> None:
    """A hook for each answer: have it raise EOFError beyond its bound, and where it is packed, which nobody asked."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise EOFError("the answer is packed, which was not asked for")
    assert isinstance(response.stream, AsyncByteStream)
    response.stream = _Bounded(response.stream)
