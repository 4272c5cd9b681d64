"""How to ask a service: typed calls with deadlines and bounded, jittered retries. The only place that imports httpx."""
