"""Merged streams: order, errors, closing."""

import asyncio
from contextlib import aclosing

import pytest

from trimtab.streams import merged


class Stream:
    """Items with pauses between them; knows whether it was closed."""

    def __init__(self, items, pause=0.0, error=None):
        self.items, self.pause, self.error = items, pause, error
        self.closed = False

    async def __call__(self):
        try:
            for item in self.items:
                await asyncio.sleep(self.pause)
                yield item
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


async def test_all_items_come_each_stream_in_order():
    streams = [Stream([(n, i) for i in range(20)], pause=0.001 * n) for n in range(4)]
    items = [item async for item in merged([stream() for stream in streams])]
    assert len(items) == 80
    assert items != sorted(items), "the streams must run concurrently"
    for n in range(4):
        assert [i for m, i in items if m == n] == list(range(20))
    assert all(stream.closed for stream in streams)
    assert [item async for item in merged([])] == []


@pytest.mark.parametrize("error", [KeyError("planted"), asyncio.CancelledError("planted")])
async def test_the_first_error_ends_all(error):
    fails, endless = Stream(["first"], error=error), Stream(range(10**9), pause=0.001)
    items = []
    with pytest.raises(type(error), match="planted"):
        await asyncio.wait_for(_collect(merged([fails(), endless()]), items), 10)
    assert "first" in items
    assert endless.closed


async def _collect(stream, items):
    async for item in stream:
        items.append(item)


async def test_closing_closes_the_streams():
    streams = [Stream(range(10**9), pause=0.001), Stream([])]
    async with aclosing(merged([stream() for stream in streams])) as items:
        async for item in items:
            if item == 3:
                break
    assert all(stream.closed for stream in streams)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left


async def test_a_stream_may_bound_its_time():
    """Each stream stays in one task, which asyncio.timeout needs, whoever reads the result."""

    async def bounded():
        async with asyncio.timeout(0.05):
            yield 1
            await asyncio.sleep(60)

    stream = merged([bounded()])
    assert await asyncio.create_task(anext(stream)) == 1
    with pytest.raises(TimeoutError):
        await asyncio.create_task(anext(stream))


async def test_a_timeout_across_tasks_misses():
    """The control: without `merged`, the task that is cancelled has already ended."""

    async def bounded():
        async with asyncio.timeout(0.05):
            yield 1
            await asyncio.sleep(0.2)
            yield 2

    stream = bounded()
    assert await asyncio.create_task(anext(stream)) == 1
    assert await asyncio.create_task(anext(stream)) == 2
    await stream.aclose()
