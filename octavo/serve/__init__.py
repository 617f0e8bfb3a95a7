"""The HTTP server: OpenAI's API over the engine.

    bytes -> guard (key, size) -> schemas -> chat | completions -> engine.Request -> Ticket -> answers -> JSON or events
"""
