"""Results in the order of their ends; the first of several, the rest cancelled. Then asyncio."""

import asyncio
import time
from concurrent.futures import FIRST_COMPLETED, as_completed, wait

from pebble import ProcessPool


def sleep(seconds):
    time.sleep(seconds)
    return seconds


async def gather(pool):
    futures = [pool.schedule(sleep, args=(s,)) for s in (0.02, 0.01)]
    return await asyncio.gather(*map(asyncio.wrap_future, futures))


if __name__ == "__main__":
    with ProcessPool(max_workers=3) as pool:
        futures = [pool.schedule(sleep, args=(s,)) for s in (0.6, 0.3, 0.01)]
        ends = [future.result() for future in as_completed(futures)]
        print(ends)
        assert ends == [0.01, 0.3, 0.6]

        futures = [pool.schedule(sleep, args=(s,)) for s in (60, 0.01, 60)]
        done, rest = wait(futures, return_when=FIRST_COMPLETED)
        print([future.result() for future in done], [future.cancel() for future in rest])

        assert asyncio.run(gather(pool)) == [0.02, 0.01]
