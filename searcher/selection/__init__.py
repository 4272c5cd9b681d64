"""Candidate questions -> a training set by difficulty (R1-Searcher's curriculum): ask, label, mix."""
