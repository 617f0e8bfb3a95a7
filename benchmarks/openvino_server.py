"""OpenVINO GenAI's continuous batching behind the smallest HTTP server that servers.py can talk to: POST /v1/chat/completions as a stream of
server-sent events, GET /health. Runs in the peer's own interpreter, which needs openvino-genai, nothing of Octavo.

    python benchmarks/openvino_server.py --model IR_FOLDER --port 8000 --threads 2

Prefix caching and split prompts (dynamic_split_fuse) are on; one thread runs the pipeline's steps, an event loop serves the sockets. Text comes from a
table of single tokens, which costs less than the pipeline's own detokenizer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from functools import lru_cache
from typing import Any

import numpy as np
import openvino
import openvino_genai


class Pipeline:
    """The pipeline and the thread that steps it. `ask` is called on the event loop."""

    def __init__(self, args: argparse.Namespace) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens, scheduler.max_num_seqs = args.batch_tokens, args.parallel
        scheduler.cache_size, scheduler.enable_prefix_caching, scheduler.dynamic_split_fuse = args.cache_gb, True, True
        properties = {"INFERENCE_NUM_THREADS": args.threads, "PERFORMANCE_HINT": args.hint}
        self.pipe = openvino_genai.ContinuousBatchingPipeline(args.model, scheduler, "CPU", properties)
        self.tokenizer = self.pipe.get_tokenizer()
        self.loop = asyncio.get_running_loop()
        self.inbox: list[tuple[list[int], Any, asyncio.Queue[list[int]]]] = []
        self.lock, self.wakeup, self.count = threading.Lock(), threading.Event(), 0
        self.piece = lru_cache(maxsize=None)(lambda token: self.tokenizer.decode([token], skip_special_tokens=False))
        threading.Thread(target=self._run, daemon=True).start()

    def ask(self, messages: list[dict[str, str]], tokens: int) -> tuple[int, asyncio.Queue[list[int]]]:
        """Number of prompt tokens, and a queue of lists of new tokens; an empty list is the end."""
        prompt = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).input_ids.data[0].tolist()
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = tokens
        config.ignore_eos, config.do_sample = True, False
        config.apply_chat_template = False
        queue: asyncio.Queue[list[int]] = asyncio.Queue()
        with self.lock:
            self.inbox.append((ids, config, queue))
        self.wakeup.set()
        return len(ids), queue

    def _run(self) -> None:
        open_requests: list[tuple[Any, int, asyncio.Queue[list[int]]]] = []
        while True:
            with self.lock:
                new, self.inbox = self.inbox, []
            for ids, config, queue in new:
                self.count += 1
                handle = self.pipe.add_request(self.count, openvino.Tensor(np.array([ids], np.int64)), config)
                open_requests.append((handle, config.max_new_tokens, queue))
            if not self.pipe.has_non_finished_requests():
                self.wakeup.wait()
                self.wakeup.clear()
                continue
            self.pipe.step()
            left, news = [], []
            for handle, tokens, queue in open_requests:
                got = [i for output in handle.read().values() for i in output.generated_ids] if handle.can_read() else []
                if got:
                    news.append((queue, got))
                if tokens > len(got):
                    left.append((handle, tokens - len(got), queue))
                else:
                    news.append((queue, []))
            open_requests = left
            self.loop.call_soon_threadsafe(self._hand_out, news)
            time.sleep(0)          # a step keeps the interpreter's lock: without this the loop would write nothing until all is done

    @staticmethod
    def _hand_out(news: list[tuple[asyncio.Queue[list[int]], list[int]]]) -> None:
        for queue, tokens in news:
            queue.put_nowait(tokens)


async def answer(pipeline: Pipeline, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    prompt_tokens, queue = pipeline.ask(body["messages"], body["max_tokens"])
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")

    def event(data: bytes) -> None:
        data = b"data: " + data + b"\n\n"
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    count = 0
    while tokens := await queue.get():
        count += len(tokens)
        text = "".join(map(pipeline.piece, tokens))
        event(b'{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":%b},"finish_reason":null}]}' % json.dumps(text).encode())
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": count, "total_tokens": prompt_tokens + count}
    event(json.dumps({"choices": [], "usage": usage}).encode())
    event(b"[DONE]")
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def connection(pipeline: Pipeline, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await reader.readline():
            headers = {}
            while (header := (await reader.readline()).strip()):
                name, _, value = header.partition(b":")
                headers[name.lower()] = value.strip()
            body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
            if line.startswith(b"POST"):
                await answer(pipeline, json.loads(body), writer)
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    except ConnectionError:
        pass                                    # a client that leaves
    finally:
        writer.close()


async def serve(args: argparse.Namespace) -> None:
    pipeline = Pipeline(args)
    server = await asyncio.start_server(lambda r, w: connection(pipeline, r, w), "127.0.0.1", args.port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--parallel", type=int, default=128)
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--cache-gb", type=int, default=4)
    parser.add_argument("--hint", default="THROUGHPUT")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
