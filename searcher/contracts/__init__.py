"""What travels between services, one file per hop. Pydantic only: no I/O, no numerics, no HTTP.

question   trainer -> rollout     what to ask, how to sample, how to reward
search     rollout <-> retriever  queries -> passages
trajectory inside rollout         what the policy wrote and what it was given, token by token
score      rollout <-> reward     trajectories -> totals and named parts
experience rollout -> trainer     all scored trajectories of one question, packed
weights    trainer -> engines     an immutable version of the policy
report     anyone <-> evaluator   a benchmark -> a report
recipe     anyone -> trainer      one experiment, every number of it
run        anyone <-> trainer     the state of a training run
errors     everywhere             one tree of errors, one rendering
"""
