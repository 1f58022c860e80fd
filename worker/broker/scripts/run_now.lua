-- Make a waiting job due now. A job that is due already keeps its place.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys     ARGV[2]  channel that wakes idle workers     ARGV[3]  id
-- ARGV[4]  when the job was enqueued, in ms since the epoch; '' for any job of this id
-- Returns 1, or 2 if the job was due already, 3 if a worker runs it, or 0 if there is no such job.
local queue, prefix, id, enqueued_at = KEYS[1], ARGV[1], ARGV[3], ARGV[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local score = redis.call('ZSCORE', queue, id)
if not score then return 0 end

-- A payload ends with its enqueue time: see abort.lua.
local tail = redis.pcall('GETRANGE', prefix .. 'job:' .. id, -48, -1)
tail = type(tail) == 'string' and tail or ''
local found = string.match(tail, ',"et":(%d+)}%s*$') or string.match(tail, ',"et":(%d+),"ledger":true}%s*$')
if enqueued_at ~= '' and tail ~= '' and found ~= enqueued_at then return 0 end

local holder = redis.pcall('GET', prefix .. 'in-progress:' .. id)
if holder and holder ~= 'ended' then return 3 end  -- or a tombstone: see finish.lua
if tonumber(score) <= now then return 2 end
redis.call('ZADD', queue, now, id)
redis.call('PUBLISH', ARGV[2], '1')
return 1
