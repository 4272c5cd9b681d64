-- The atomic steps in the life of an evaluation, by name. jobs.py says what they are for, and calls them.
-- ARGV: the step's name, the evaluation's id, and what the step itself takes.

local record, chunks, pending, leases, owners, sends, claims, results, verdicts, sums = unpack(KEYS, 1, 10)
local index, open, turns, wanted = unpack(KEYS, 11)
local step, id = table.remove(ARGV, 1), table.remove(ARGV, 1)

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local state = redis.call('HGET', record, 'state')
local is_open = state == 'queued' or state == 'running'

local function begin()
  redis.call('HSET', record, 'state', 'queued', 'progress_ms', now)
  redis.call('SADD', open, id)
  if redis.call('HEXISTS', record, 'version') == 1 then redis.call('RPUSH', turns, id) end
end

local function finish(final, reason)
  redis.call('HSET', record, 'state', final, 'finished_ms', now)
  if reason then redis.call('HSET', record, 'error', reason) end
  redis.call('DEL', pending, leases, owners, sends, claims)
  redis.call('LREM', turns, 0, id)
end

-- Keeps the values of ARGV and adds their figures up: ARGV[2] is how many figures there are, then come their names,
-- then per value its key, itself and its figures. Only the first value under a key counts. Returns how many were new.
local function keep(values)
  local num_figures, kept = tonumber(ARGV[2]), 0
  for i = 3 + num_figures, #ARGV, num_figures + 2 do
    if redis.call('HSETNX', values, ARGV[i], ARGV[i + 1]) == 1 then
      kept = kept + 1
      for f = 1, num_figures do redis.call('HINCRBYFLOAT', sums, ARGV[2 + f], ARGV[i + 1 + f]) end
    end
  end
  return kept
end

local steps = {}

-- Then come the chunks, the first of which is number 0. `version` is '' where the evaluation brings no weights along.
function steps.create(digest, total, max_open, outline, version)
  local known = redis.call('HGET', record, 'digest')
  if known then return known == digest and 'exists' or 'conflict' end
  if redis.call('SCARD', open) >= tonumber(max_open) then return 'full' end
  redis.call('HSET', record, 'digest', digest, 'total', total, 'outline', outline, 'created_ms', now)
  if version ~= '' then redis.call('HSET', record, 'version', version) end
  for i = 6, #ARGV do
    redis.call('HSET', chunks, i - 6, ARGV[i])
    redis.call('RPUSH', pending, i - 6)
  end
  redis.call('ZADD', index, now, id)
  begin()
  return 'created'
end

-- Waiting in a queue is no fault: an unclaimed chunk is sent again at growing intervals.
function steps.take_due(window, lease_ms)
  if not is_open then return {{}, {}} end
  local version = redis.call('HGET', record, 'version')
  if version then
    if redis.call('LINDEX', turns, 0) ~= id then return {{}, {}} end
    redis.call('SET', wanted, version)
  end
  local again, first = redis.call('ZRANGEBYSCORE', leases, '-inf', now), {}
  while redis.call('ZCARD', leases) < tonumber(window) do
    local chunk = redis.call('LPOP', pending)
    if not chunk then break end
    redis.call('ZADD', leases, now, chunk)
    table.insert(first, chunk)
  end
  for _, list in ipairs({again, first}) do
    for _, chunk in ipairs(list) do
      local sent = redis.call('HINCRBY', sends, chunk, 1)
      redis.call('ZADD', leases, now + lease_ms * 2 ^ math.min(sent - 1, 5), chunk)
      redis.call('HDEL', owners, chunk)
    end
  end
  return {again, first}
end

function steps.claim(chunk, owner, lease_ms, max_crashes)
  local lease = redis.call('ZSCORE', leases, chunk)
  if not is_open or not lease then return false end
  if redis.call('HEXISTS', owners, chunk) == 1 and tonumber(lease) > now then return false end
  if redis.call('HINCRBY', claims, chunk, 1) > tonumber(max_crashes) then
    finish('failed', 'chunk ' .. chunk .. ' ended its worker ' .. max_crashes .. ' times; see the log of the workers')
    return false
  end
  redis.call('HSET', owners, chunk, owner)
  redis.call('ZADD', leases, now + lease_ms, chunk)
  redis.call('HDEL', sends, chunk)
  redis.call('HSET', record, 'state', 'running')
  redis.call('HSETNX', record, 'started_ms', now)
  return {redis.call('HGET', record, 'outline'), redis.call('HGET', chunks, chunk), redis.call('HLEN', results)}
end

function steps.renew(chunk, owner, lease_ms)
  if not is_open or redis.call('HGET', owners, chunk) ~= owner then return 0 end
  redis.call('ZADD', leases, 'XX', now + lease_ms, chunk)
  return 1
end

-- Then come the answers, as `keep` takes them. `weights` is '' if no token was sampled by rollout.
function steps.store(weights)
  if not is_open then return 0 end
  if weights ~= '' and redis.call('HSETNX', record, 'weights', weights) == 0 then
    local before = redis.call('HGET', record, 'weights')
    if before ~= weights then
      finish('failed', 'weights changed during the evaluation: from ' .. before .. ' to ' .. weights)
      return 0
    end
  end
  local stored = keep(results)
  redis.call('HDEL', record, 'down_since_ms', 'outages')
  redis.call('HSET', record, 'progress_ms', now)
  return stored
end

-- Then come the verdicts, as `keep` takes them. `problem` is why there are not more of them, or ''.
function steps.judge(problem)
  if not is_open then return 0 end
  if problem ~= '' then redis.call('HSET', record, 'not_judged', problem) end
  return keep(verdicts)
end

function steps.finish(chunk)
  if not is_open then return 0 end
  redis.call('ZREM', leases, chunk)
  for _, key in ipairs({owners, sends, claims}) do redis.call('HDEL', key, chunk) end
  if redis.call('ZCARD', leases) == 0 and redis.call('LLEN', pending) == 0 then finish('done') end
  return 1
end

function steps.postpone(chunk, owner, reason, outage_ms)
  if not is_open or redis.call('HGET', owners, chunk) ~= owner then return 0 end
  redis.call('HSETNX', record, 'down_since_ms', now)
  local seconds = math.floor((now - redis.call('HGET', record, 'down_since_ms')) / 1000)
  if seconds * 1000 >= tonumber(outage_ms) then
    finish('failed', 'no answer for ' .. seconds .. ' s: ' .. reason)
    return 0
  end
  local outages = redis.call('HINCRBY', record, 'outages', 1)
  redis.call('HDEL', owners, chunk)
  redis.call('HINCRBY', claims, chunk, -1)
  redis.call('ZADD', leases, 'XX', now + 1000 * 2 ^ math.min(outages - 1, 4), chunk)
  return 1
end

function steps.fail(reason)
  if not is_open then return 0 end
  finish('failed', reason)
  return 1
end

-- Then come the chunks with something left to do. `seen` is the state in which they were counted.
function steps.resume(seen, max_open)
  if state ~= seen then return 'changed' end
  if redis.call('SCARD', open) >= tonumber(max_open) then return 'full' end
  redis.call('DEL', pending)
  for i = 3, #ARGV do redis.call('RPUSH', pending, ARGV[i]) end
  redis.call('HDEL', record, 'error', 'down_since_ms', 'outages', 'not_judged', 'started_ms', 'finished_ms')
  redis.call('HSET', record, 'done_before', redis.call('HLEN', results))
  for _, key in ipairs({record, chunks, results, verdicts, sums}) do redis.call('PERSIST', key) end
  begin()
  return 'resumed'
end

return steps[step](unpack(ARGV, 1, 5))  -- no step names more, and a long list does not fit on Lua's stack
