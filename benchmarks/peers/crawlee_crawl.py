"""Crawlee with its file-system storage: crawl a site into DIR/pages.jsonl, resuming from DIR.

    python crawlee_crawl.py --url http://127.0.0.1:8000/ --out DIR

Each record is one write to a file opened for appending, so a kill tears none; Crawlee's own
dataset would write a file per page.
"""

import argparse
import asyncio
import json
import time
from importlib.metadata import version
from pathlib import Path

from crawlee import ConcurrencySettings, service_locator
from crawlee.configuration import Configuration
from crawlee.crawlers import ParselCrawler, ParselCrawlingContext
from crawlee.storage_clients import FileSystemStorageClient

CONCURRENCY = 16


async def crawl(url: str, out: Path) -> dict[str, object]:
    """Run the crawler to its end; the figures of this run alone."""
    records = 0
    pages = (out / "pages.jsonl").open("ab", buffering=0)
    configuration = Configuration(storage_dir=str(out / "storage"), purge_on_start=False)
    service_locator.set_configuration(configuration)
    # The concurrency is fixed: growing from a low one would measure the autoscaler.
    crawler = ParselCrawler(
        configuration=configuration,
        storage_client=FileSystemStorageClient(),
        concurrency_settings=ConcurrencySettings(
            min_concurrency=CONCURRENCY,
            desired_concurrency=CONCURRENCY,
            max_concurrency=CONCURRENCY,
        ),
        respect_robots_txt_file=True,
        configure_logging=False,
    )

    async def record_page(context: ParselCrawlingContext) -> None:
        nonlocal records
        record = {
            "url": context.request.url,
            "status": context.http_response.status_code,
            "title": context.selector.css("title::text").get(),
            "bytes": len(await context.http_response.read()),
            "links": len(context.selector.css("a::attr(href)")),
        }
        pages.write(json.dumps(record).encode() + b"\n")
        records += 1
        await context.enqueue_links()

    crawler.router.default_handler(record_page)
    started_s = time.perf_counter()
    with pages:
        await crawler.run([url], purge_request_queue=False)
    return {
        "peer": f"crawlee {version('crawlee')}",
        "records": records,
        "seconds": time.perf_counter() - started_s,
        "cpu_s": time.process_time(),
    }


def main() -> None:
    """Print the figures as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--url", required=True, help="where to start")
    parser.add_argument("--out", type=Path, required=True, help="the folder to resume or to fill")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    print(json.dumps(asyncio.run(crawl(options.url, options.out))))


if __name__ == "__main__":
    main()
