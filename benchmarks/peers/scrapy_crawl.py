"""Scrapy with JOBDIR: crawl a site into DIR/pages.jsonl, resuming what JOBDIR kept.

    python scrapy_crawl.py --url http://127.0.0.1:8000/ --out DIR

Each record is one write to a file opened for appending, so a kill tears none; a feed export would
buffer them and lose some.
"""

import argparse
import json
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import scrapy
from scrapy.crawler import CrawlerProcess
from scrapy.http import Response, TextResponse

CONCURRENCY = 16


class SiteSpider(scrapy.Spider):
    """Follows every link of one site."""

    name = "site"

    def __init__(self, url: str, out: Path) -> None:
        super().__init__()
        self.start_urls = [url]
        self._pages = (out / "pages.jsonl").open("ab", buffering=0)
        self.records = 0

    def parse(self, response: Response, **_: Any) -> Iterator[scrapy.Request]:
        """Record the page, then follow its links."""
        assert isinstance(response, TextResponse)
        links = response.css("a::attr(href)").getall()
        record = {
            "url": response.url,
            "status": response.status,
            "title": response.css("title::text").get(),
            "bytes": len(response.body),
            "links": len(links),
        }
        self._pages.write(json.dumps(record).encode() + b"\n")
        self.records += 1
        yield from response.follow_all(links)


def crawl(url: str, out: Path) -> dict[str, object]:
    """Run the spider to its end; the figures of this run alone."""
    process = CrawlerProcess(
        {
            "JOBDIR": str(out / "job"),
            "CONCURRENT_REQUESTS": CONCURRENCY,
            "CONCURRENT_REQUESTS_PER_DOMAIN": CONCURRENCY,
            "ROBOTSTXT_OBEY": True,
            "LOG_LEVEL": "ERROR",
            "TELNETCONSOLE_ENABLED": False,
        }
    )
    crawler = process.create_crawler(SiteSpider)
    started_s = time.perf_counter()
    process.crawl(crawler, url=url, out=out)
    process.start()
    seconds = time.perf_counter() - started_s
    assert isinstance(crawler.spider, SiteSpider)
    return {
        "peer": f"scrapy {version('scrapy')}",
        "records": crawler.spider.records,
        "seconds": seconds,
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
    print(json.dumps(crawl(options.url, options.out)))


if __name__ == "__main__":
    main()
