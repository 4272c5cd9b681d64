"""How a service runs: settings, logs, metrics, the HTTP frame, the Redis streams between rollout and trainer."""
