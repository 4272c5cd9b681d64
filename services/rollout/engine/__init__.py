"""The engine: a stock vLLM server with our weight transfer, started with the settings that were proven for it.

Runs in an environment of its own (vLLM pins torch and transformers). The only place that imports vllm.
"""
