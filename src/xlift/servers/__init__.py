"""Models behind OpenAI-compatible servers: client.py asks them, for judges and for models that answer prompts."""
