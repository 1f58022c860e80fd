-- Ask for a job to be aborted. A waiting job becomes due at once, so that a worker claims and ends it. A running job is
-- cancelled by its worker.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys     ARGV[2]  channel that wakes idle workers     ARGV[3]  id
-- ARGV[4]  when the job was enqueued, in ms since the epoch; '' for any job of this id
-- Returns 1, or 0 if there is no such job: no job has the id, or another job has it by now.
local queue, prefix, id, enqueued_at = KEYS[1], ARGV[1], ARGV[3], ARGV[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- Workers ignore an abort that is older than the job: a stock client's may be meant for an earlier job of this id. The
-- job's time is that of its producer's clock, which may be ahead. So this abort is dated in the future.
local AHEAD = 12 * 60 * 60 * 1000
if not redis.call('ZSCORE', queue, id) then return 0 end

-- A payload ends with its enqueue time: see worker/message.py. Stock producers write it there as well.
local tail = redis.pcall('GETRANGE', prefix .. 'job:' .. id, -48, -1)
tail = type(tail) == 'string' and tail or ''
local found = string.match(tail, ',"et":(%d+)}%s*$') or string.match(tail, ',"et":(%d+),"ledger":true}%s*$')
-- If the payload is lost, the job is taken for the requested one.
if enqueued_at ~= '' and tail ~= '' and found ~= enqueued_at then return 0 end

redis.call('ZADD', prefix .. 'abort', string.format('%.0f', math.max(now + AHEAD, tonumber(found) or 0)), id)
local holder = redis.pcall('GET', prefix .. 'in-progress:' .. id)
if not holder or holder == 'ended' then  -- no worker runs it: see finish.lua
    redis.call('ZADD', queue, now, id)
    redis.call('PUBLISH', ARGV[2], '1')
end
return 1
