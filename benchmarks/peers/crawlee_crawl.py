"""Crawlee with its file-system storage: crawl a site into DIR/pages.jsonl, resuming from DIR.

    python crawlee_crawl.py --url http://127.0.0.1:8000/ --out DIR

Records go to Crawlee's own dataset, a file per record, and from there to pages.jsonl once the crawl
is done. Writing to pages.jsonl from the handler was a tenth faster, but the two kills then repeated
some 30 records instead of at most a few: Crawlee commits a dataset's records after the handler.
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
    """Run the crawler to its end; its figures, with the records of earlier runs."""
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
        record: dict[str, str | int | None] = {
            "url": context.request.url,
            "status": context.http_response.status_code,
            "title": context.selector.css("title::text").get(),
            "bytes": len(await context.http_response.read()),
            "links": len(context.selector.css("a::attr(href)")),
        }
        await context.push_data(record)
        await context.enqueue_links()

    crawler.router.default_handler(record_page)
    started_s = time.perf_counter()
    await crawler.run([url], purge_request_queue=False)
    dataset = await crawler.get_dataset()
    lines = [json.dumps(record) + "\n" async for record in dataset.iterate_items()]
    (out / "pages.jsonl").write_text("".join(lines))
    return {
        "peer": f"crawlee {version('crawlee')}",
        "records": len(lines),
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
