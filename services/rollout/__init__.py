"""question -> trajectories: think, search, read, answer. Start with episode.py."""
