"""The language of the task: prompts, tags, answers. Pure functions on text; no I/O."""
